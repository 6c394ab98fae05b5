"`pytest -q tests --device cuda` runs what depends on a device there; without the option it runs on the processor."
import pytest

def pytest_configure(config):
    config.addinivalue_line('markers', 'once: long, or of processes, memory or widgets, and alike with every fastai: .ci/run tries it in one of its two environments')

def pytest_addoption(parser): parser.addoption('--device', default='cpu', help='where tests of the device compute: cpu, cuda, cuda:1 …')

@pytest.fixture(scope='session')
def device(pytestconfig):
    import torch
    from cactus_nb.runs import check_device
    name = pytestconfig.getoption('--device')
    check_device(name)
    return torch.device(name)
