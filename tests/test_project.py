"Guards on the project itself: what breaks without a word when nobody looks."
import ast, json, os, re, subprocess, sys
from collections import Counter
from configparser import ConfigParser
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest, yaml

root = Path(__file__).resolve().parent.parent
nbs, lib = root/'nbs', root/'cactus_nb'
config = ConfigParser(delimiters=['='])
config.read(root/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
notebooks = sorted(p for p in nbs.rglob('*.ipynb') if not any(o[0] in '._' for o in p.relative_to(nbs).parts))
name_of = re.compile(r'[A-Za-z0-9._-]+')

def read(path): return path.read_text(encoding='utf-8')
def cells(path): return json.loads(read(path))['cells']
def canonical(name): return re.sub(r'[-_.]+', '-', name).lower()
def tracked(): return subprocess.run(['git', 'ls-files', '-z'], cwd=root, capture_output=True, text=True).stdout.split('\0')[:-1]
def needs(path):
    if not path.exists(): pytest.skip(f'{path.relative_to(root)} is not written yet')

def hrefs(o):
    "Every file that a sidebar names, patterns filled in"
    if isinstance(o, list): return [h for x in o for h in hrefs(x)]
    if isinstance(o, dict): return hrefs(o.get('href', [])) + hrefs(o.get('contents', []))
    return [p.relative_to(nbs).as_posix() for p in nbs.glob(o)] if '*' in o else [o]

def default_exp(path):
    "The module that a notebook exports to, or None"
    src = (''.join(c['source']) for c in cells(path) if c['cell_type'] == 'code')
    return next((m[1] for m in map(re.compile(r'^#\|\s*default_exp\s+(\S+)', re.M).search, src) if m), None)


def test_quarto_link():
    "nbdev writes its own nbs/_quarto.yml where there is none: losing the link is silent."
    link = nbs/'_quarto.yml'
    assert link.is_symlink() and os.readlink(link) == '../_quarto.yml'
    assert 'custom_quarto_yml' not in cfg, 'nbdev deletes the link where settings.ini has custom_quarto_yml'

def test_top_level():
    "What lies beside the package is known by name: a notebook that was run in another folder leaves a copy."
    known = {'settings.ini', 'setup.py', '_quarto.yml', 'nbs', 'cactus_nb', 'tests', 'README.md', 'LICENSE', 'CHANGELOG.md', 'MANIFEST.in', 'constraints.txt'}
    assert {o.split('/')[0] for o in tracked() if o[0] != '.'} <= known

def test_quarto_yml():
    "The site needs nbdev.yml, and nbdev sets where it is written to: another place breaks nbdev_docs."
    q = yaml.safe_load(read(root/'_quarto.yml'))
    assert 'nbdev.yml' in q['metadata-files'] and not {'render', 'output-dir'} & set(q['project'])
    web = yaml.safe_load(read(nbs/'nbdev.yml'))['website']
    assert (web['title'], web['description'], web['repo-url']) == (cfg['title'], cfg['description'], cfg['git_url'])

def test_docs_workflow():
    "The site is built by exact versions: a new Quarto, or a new version of an action, comes when someone has tried it."
    steps = [s for job in yaml.safe_load(read(root/'.github'/'workflows'/'docs.yaml'))['jobs'].values() for s in job['steps']]
    assert not [s['uses'] for s in steps if 'uses' in s and not re.search(r'@v\d+\.\d+\.\d+$', s['uses'])]
    assert [s['with']['version'] for s in steps if 'quarto-actions' in s.get('uses', '') and re.fullmatch(r'\d+\.\d+\.\d+', s['with']['version'])]

def test_sidebar():
    "A notebook that the sidebar leaves out cannot be found on the site."
    listed = hrefs(yaml.safe_load(read(root/'_quarto.yml'))['website']['sidebar']['contents'])
    assert len(listed) == len(set(listed))
    assert not {p.relative_to(nbs).as_posix() for p in notebooks} - set(listed)

def test_default_exp():
    "Page, module and file share a name, so that one finds the other."
    wrong = {p.name: default_exp(p) for p in notebooks if default_exp(p) not in (None, re.sub(r'^\d+[a-z]?_', '', p.stem))}
    assert not wrong

def test_modules_have_notebooks():
    "nbdev_export leaves a module behind when its notebook is renamed or deleted."
    needs(lib)
    mods = {p.relative_to(lib).with_suffix('').as_posix().replace('/', '.') for p in lib.rglob('*.py') if p.stem not in ('__init__', '_modidx')}
    assert not mods - {default_exp(p) for p in notebooks}

def test_arrows():
    "What a module imports at its top comes from pages before its own, so that they can be read in their order. (Pictures are drawn by later pages, imported where they are used.)"
    needs(lib)
    place = {default_exp(p): p.name for p in nbs.glob('*.ipynb') if default_exp(p)}
    for name,page in place.items():
        path = lib.joinpath(*name.split('.')).with_suffix('.py')
        used = [n for n in ast.parse(read(path)).body if isinstance(n, ast.ImportFrom) and n.level]
        for n in used:
            base = '.'.join([*name.split('.')[:-n.level], *([n.module] if n.module else [])])
            for o in [base] if base in place else ['.'.join(filter(None, [base, a.name])) for a in n.names]: assert place[o] < page, f'{page} takes from {place[o]}'

def test_no_widget_state():
    "Saved widget state makes large diffs, and shows nothing on a static page."
    for p in notebooks:
        assert 'widgets' not in json.loads(read(p))['metadata'], p.name
        assert 'application/vnd.jupyter.widget' not in json.dumps([c.get('outputs') for c in cells(p)]), p.name

def test_requirements_have_no_upper_bound():
    "What torch or fastai people have is theirs to choose."
    assert not [o for o in cfg['requirements'].split() if not re.fullmatch(r'[\w.-]+(>=[\d.]+)?', o)]

def test_constraints_cover_requirements():
    "A requirement without a pin changes under our feet, and two pins that differ cannot be installed."
    lines = (o.split('#')[0].strip() for o in read(root/'constraints.txt').splitlines())
    pins = {canonical(k): v for k, v in (o.split('==') for o in lines if o)}
    for o in (cfg['requirements'] + ' ' + cfg['dev_requirements']).split():
        name = name_of.match(o)[0]
        assert canonical(name) in pins, f'{name} has no pin in constraints.txt'
        if '==' in o: assert pins[canonical(name)] == o.split('==')[1], name

def test_library_source():
    "The package works on any device and without torchvision; what few people need is imported where it is used."
    for p in lib.rglob('*.py'):
        src = read(p)
        assert not re.search(r'\.cuda\(\)|^\s*(from|import) (fastai\.vision|torchvision)', src, re.M), p
        assert not re.search(r'^(from|import) (matplotlib\.pyplot|faiss|ipywidgets)|^from matplotlib import .*pyplot', src, re.M), p

def test_import_is_light():
    "Importing everything costs no more than fastai.basics, which imports pyplot itself, does."
    needs(lib/'all.py')
    src = '''import sys, fastai.basics
before = set(sys.modules)
import cactus_nb.all
heavy = {"matplotlib.pyplot", "faiss", "ipywidgets", "torchvision", "fastai.vision"}
print(sorted(heavy & (set(sys.modules) - before)))'''
    res = subprocess.run([sys.executable, '-c', src], cwd=root, capture_output=True, text=True)
    assert res.returncode == 0, res.stderr
    assert res.stdout.strip() == '[]'

def test_names_do_not_collide():
    "Of two things of one name, `cactus_nb.all` gives the last one, and nobody is told."
    needs(lib/'all.py')
    modules = [import_module('cactus_nb' + o) for o in re.findall(r'^from (\.[\w.]+) import \*', read(lib/'all.py'), re.M)]
    count = Counter(o for m in modules for o in m.__all__)
    assert len(modules) > 20 and not {o: n for o,n in count.items() if n > 1}

def test_console_scripts():
    "A command that settings.ini names and no module holds fails only when someone runs it."
    for o in cfg['console_scripts'].split():
        mod, func = o.split('=')[1].split(':')
        path = root/(mod.replace('.', '/') + '.py')
        needs(path)
        assert func in {n.name for n in ast.parse(read(path)).body if isinstance(n, ast.FunctionDef)}, o

def test_changes_are_written_down():
    "The top of CHANGELOG.md is the version that would be built."
    assert re.search(r'^## (\S+)', read(root/'CHANGELOG.md'), re.M)[1] == cfg['version']

def test_no_outside_paths():
    "Only .ci/run may know where data lies beside the checkout; anyone else has CACTUS_DATA."
    outside = ('../' + 'shared').encode()
    files = [o for o in tracked() if o != '.ci/run' and (root/o).is_file()]
    assert not [o for o in files if outside in (root/o).read_bytes()]

def test_readme():
    "README.md is made from the index: an edit in one place only is lost."
    if find_spec('pypandoc') is None: pytest.skip('pypandoc_binary is not installed')
    needs(nbs/'index.ipynb')
    res = subprocess.run([sys.executable, root/'.ci'/'make_readme.py', '--check'], capture_output=True, text=True)
    assert res.returncode == 0, res.stderr
