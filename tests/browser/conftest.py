"`pytest -q tests/browser --in-browser` drives the widgets by a real browser; without the option these tests are skipped."
import os, shutil, socket, subprocess, sys, time
from importlib.util import find_spec
from pathlib import Path
from urllib.request import urlopen

import pytest

root = Path(__file__).resolve().parents[2]

def pytest_addoption(parser):
    parser.addoption('--in-browser', action='store_true', help='drive the widgets by a headless Chromium, in JupyterLab and Notebook 7')
    parser.addoption('--shots', default=None, help='folder for the screenshots')
    parser.addoption('--chromium', default=shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome'), help="the browser; Playwright's own where there is none")

def pytest_collection_modifyitems(config, items):
    why = 'they need a browser: pytest -q tests/browser --in-browser' if not config.getoption('--in-browser', default=False) else None
    if why is None:
        lacks = [o for o in ('playwright', 'jupyterlab', 'notebook', 'ipywidgets') if find_spec(o) is None]
        if lacks: raise pytest.UsageError(f"{', '.join(lacks)} not installed: pip install -e '.[browser]'")
    for o in items:
        if why and Path(__file__).parent in o.path.parents: o.add_marker(pytest.mark.skip(reason=why))

def free_port():
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); return s.getsockname()[1]

@pytest.fixture(scope='session')
def jupyter(tmp_path_factory):
    "A Jupyter server with JupyterLab and Notebook 7 on an empty folder, and nothing of the user's settings: `(url, folder, token)`"
    home, port, token = tmp_path_factory.mktemp('jupyter'), free_port(), 'widgets'
    work, settings = home/'work', home/'settings'/'@jupyterlab'/'notebook-extension'
    work.mkdir(); settings.mkdir(parents=True)
    (home/'settings'/'@jupyterlab'/'apputils-extension').mkdir()
    (home/'settings'/'@jupyterlab'/'apputils-extension'/'notification.jupyterlab-settings').write_text('{"fetchNews": "false", "checkForUpdates": false}')
    (settings/'tracker.jupyterlab-settings').write_text('{"windowingMode": "none"}') # every cell is in the page, seen or not
    env = os.environ | dict(JUPYTER_CONFIG_DIR=str(home/'config'), JUPYTER_DATA_DIR=str(home/'data'), JUPYTER_RUNTIME_DIR=str(home/'run'), JUPYTERLAB_SETTINGS_DIR=str(home/'settings'), JUPYTERLAB_WORKSPACES_DIR=str(home/'spaces'),
        IPYTHONDIR=str(home/'ipython'), PYTHONPATH=os.pathsep.join([str(root), os.environ.get('PYTHONPATH', '')]), JUPYTER_PLATFORM_DIRS='1')
    with open(home/'log', 'w') as log:
        args = [f'--ServerApp.port={port}', '--ServerApp.ip=127.0.0.1', '--ServerApp.port_retries=0', f'--IdentityProvider.token={token}', f'--ServerApp.root_dir={work}', '--ServerApp.open_browser=False', '--ServerApp.allow_root=True', '--LabApp.news_url=None', '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate']
        server = subprocess.Popen([sys.executable, '-m', 'jupyter_server', '--ServerApp.jpserver_extensions={"jupyterlab": True, "notebook": True}', *args], env=env, stdout=log, stderr=log, cwd=work)
    url = f'http://127.0.0.1:{port}'
    try:
        for _ in range(240):
            try: urlopen(f'{url}/api/status?token={token}').read(); break
            except OSError: time.sleep(0.5)
            if server.poll() is not None: break
        else: pytest.fail(f'Jupyter did not start:\n{(home/"log").read_text()[-3000:]}')
        if server.poll() is not None: pytest.fail(f'Jupyter stopped:\n{(home/"log").read_text()[-3000:]}')
        yield url, work, token
    finally:
        server.terminate()
        try: server.wait(20)
        except subprocess.TimeoutExpired: server.kill()

@pytest.fixture(scope='session')
def browser(pytestconfig):
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=pytestconfig.getoption('--chromium'), args=['--no-sandbox', '--disable-dev-shm-usage'])
        yield b
        b.close()

@pytest.fixture
def page(browser):
    p = browser.new_page(viewport=dict(width=1500, height=1150))
    p.set_default_timeout(60_000)
    yield p
    p.close()

@pytest.fixture(scope='session')
def shots(pytestconfig, tmp_path_factory):
    "Where screenshots go"
    folder = Path(pytestconfig.getoption('--shots') or tmp_path_factory.mktemp('shots'))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
