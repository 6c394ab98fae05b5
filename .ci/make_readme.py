"""Make README.md from nbs/index.ipynb. With --check, change nothing and exit 1 where the two are out of step.

The notebook goes through what `nbdev_proc_nbs` does to each notebook, then through Pandoc. The command itself is not
called, because it first tries to install Quarto; nor is `nbdev_readme`, which needs Quarto.
"""
import argparse, json, os, posixpath, re, sys, tempfile
from pathlib import Path

root = Path(__file__).resolve().parent.parent
readme, index = root/'README.md', root/'nbs'/'index.ipynb'
reader = 'gfm+attributes+fenced_divs'
external = re.compile(r'[a-zA-Z][a-zA-Z0-9+.-]*:|[#/]|$')


def text(x): return ''.join(x or [])

def pandoc(s, frm, to='gfm', *args):
    "Convert `s` by the Pandoc that pypandoc_binary carries, never by another one that happens to be installed"
    try: import pypandoc
    except ImportError: raise SystemExit("make_readme: needs pypandoc_binary: pip install -c constraints.txt -e '.[dev]'")
    exe = Path(pypandoc.__file__).parent/'files'/('pandoc.exe' if os.name == 'nt' else 'pandoc')
    if exe.exists(): os.environ['PYPANDOC_PANDOC'] = str(exe)
    return pypandoc.convert_text(s, to, format=frm, extra_args=['--wrap=preserve', *args]).replace('\r\n', '\n')

def processed(path):
    "The cells of the notebook after nbdev's processors, without links for symbols: those vary with what is installed"
    from nbdev.processors import FilterDefaults
    from nbdev.serve_drv import main
    class Unlinked(FilterDefaults):
        def base_procs(self): return [o for o in super().base_procs() if o.__name__ != 'add_links']
    with tempfile.TemporaryDirectory() as d:
        out = Path(d)/path.name
        main((path, out, Unlinked))
        return json.loads(out.read_text(encoding='utf-8'))['cells']

def fence(s, lang=''):
    s = s.rstrip('\n')
    ticks = '`' * max(3, 1 + max(map(len, re.findall('`+', s)), default=0))
    return f'{ticks}{lang}\n{s}\n{ticks}' if s.strip() else ''

def output_md(o):
    "What of an output can stand in a README: text and tables, no pictures and no warnings"
    kind = o['output_type']
    if kind == 'stream': return fence(text(o['text'])) if o['name'] == 'stdout' else ''
    if kind == 'error': return fence(f"{o['ename']}: {o['evalue']}")
    data = {k: text(v) for k, v in o['data'].items() if k.startswith('text/')}
    if any(k.startswith('image/') for k in o['data']): return ''
    if 'text/markdown' in data: return data['text/markdown']
    tables = re.findall(r'<table.*?</table>', data.get('text/html', ''), flags=re.S)
    if tables: return '\n\n'.join(pandoc(o, 'html') for o in tables)
    return fence(data.get('text/plain', ''))

def front(src):
    "The title and the subtitle, which nbdev moves to front matter"
    import yaml
    d = yaml.safe_load(src.strip().strip('-'))
    return f"# {d['title']}" + (f"\n\n> {d['description']}" if d.get('description') else '')

def cell_md(c):
    src = text(c['source'])
    if c['cell_type'] == 'raw': return front(src) if src.startswith('---') else ''
    if c['cell_type'] == 'markdown': return src
    opts = dict(re.findall(r'^#\|\s*([\w-]+):\s*(.*?)\s*$', src, flags=re.M))
    off = {k for k, v in opts.items() if v.lower() == 'false'}
    if 'include' in off: return ''
    src = re.sub(r'^#\|.*\n?', '', src, flags=re.M)
    res = [] if 'echo' in off else [fence(src, c['metadata'].get('language', 'python'))]
    if 'output' not in off: res += [output_md(o) for o in c.get('outputs', [])]
    return '\n\n'.join(filter(None, res))

def from_root(url):
    "A link as seen from README.md; in the notebook it is relative to nbs/"
    return url if external.match(url) else posixpath.normpath(posixpath.join('nbs', url))

def relink(x, images):
    "Rewrite the links of a Pandoc tree, and note the files it shows in `images`"
    if isinstance(x, list): return [relink(o, images) for o in x]
    if not isinstance(x, dict): return x
    kind, c = x.get('t'), x.get('c')
    if kind in ('Link', 'Image'):
        url = from_root(c[2][0])
        if kind == 'Image' and not external.match(url): images.append(url)
        return {'t': kind, 'c': [c[0], relink(c[1], images), [url, c[2][1]]]}
    if kind in ('RawInline', 'RawBlock'):
        images += [from_root(o) for o in re.findall(r'\bsrc="([^"]*)"', c[1]) if not external.match(o)]
        return {'t': kind, 'c': [c[0], re.sub(r'\b(src|href)="([^"]*)"', lambda m: f'{m[1]}="{from_root(m[2])}"', c[1])]}
    return {k: relink(v, images) for k, v in x.items()}

def make_readme(path=index):
    "The text of README.md"
    if not path.exists(): raise SystemExit(f'make_readme: {path.relative_to(root)} is not there')
    os.chdir(root)  # nbdev looks for settings.ini from here
    md = '\n\n'.join(filter(None, map(cell_md, processed(path))))
    images = []
    tree = relink(json.loads(pandoc(md, reader, 'json')), images)
    for o in images:
        if not (root/o).exists(): raise SystemExit(f'make_readme: {path.name} shows {o}, which is not there')
    return pandoc(json.dumps(tree), 'json').strip() + '\n'

def check():
    "None where README.md is in step with the index, else one line that says what to do"
    if readme.exists() and readme.read_text(encoding='utf-8') == make_readme(): return
    return 'README.md differs from what nbs/index.ipynb makes: run python .ci/make_readme.py'

def main():
    p = argparse.ArgumentParser(description='Make README.md from nbs/index.ipynb')
    p.add_argument('--check', action='store_true', help='change nothing; exit 1 where README.md is out of step')
    if p.parse_args().check: sys.exit(check())
    readme.write_text(make_readme(), encoding='utf-8', newline='\n')

if __name__ == '__main__': main()
