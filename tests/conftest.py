"`pytest -q tests --device cuda` runs what depends on a device there; without the option it runs on the processor."
import pytest

def pytest_addoption(parser): parser.addoption('--device', default='cpu', help='where tests of the device compute: cpu, cuda, cuda:1 …')

@pytest.fixture(scope='session')
def device(pytestconfig):
    import torch
    name = pytestconfig.getoption('--device')
    try: torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as e: raise pytest.UsageError(f'--device {name}: {e}') from e
    return torch.device(name)
