"""Is a built wheel what people should get? Every module of the package, its licence, the version and the commands of settings.ini, and nothing else.

    python .ci/check_wheel.py dist/cactus_nb-0.0.1-py3-none-any.whl
"""
import sys, zipfile
from configparser import ConfigParser
from email.parser import Parser
from pathlib import Path

root = Path(__file__).resolve().parent.parent


def faults(wheel, cfg):
    "What is wrong with the wheel, a line each"
    lib, version = cfg['lib_path'], cfg['version']
    info = f'{lib}-{version}.dist-info/'
    with zipfile.ZipFile(wheel) as z:
        names = set(z.namelist())
        read = lambda name: z.read(info + name).decode() if info + name in names else ''
        meta, scripts = Parser().parsestr(read('METADATA')), read('entry_points.txt').replace(' ', '')
    modules = {p.relative_to(root).as_posix() for p in (root/lib).rglob('*') if p.is_file() and '__pycache__' not in p.parts}
    found = {o for o in names if not o.startswith(info)}
    yield from (f'{o} is missing' for o in sorted(modules - found))
    yield from (f'{o} does not belong there' for o in sorted(found - modules))
    if meta['Version'] != version: yield f"its version is {meta['Version']}, settings.ini has {version}"
    if not any(o.startswith(info) and o.endswith('LICENSE') for o in names): yield 'it has no LICENSE'
    yield from (f'the command {o} is missing' for o in cfg['console_scripts'].split() if o not in scripts.split())
    yield from (f'it pins {o}: what people have installed is theirs to choose' for o in meta.get_all('Requires-Dist', []) if '==' in o and 'extra' not in o)


if __name__ == '__main__':
    if len(sys.argv) != 2: raise SystemExit('usage: check_wheel.py WHEEL')
    config = ConfigParser(delimiters=['='])
    config.read(root/'settings.ini', encoding='utf-8')
    if wrong := list(faults(sys.argv[1], config['DEFAULT'])): raise SystemExit('\n'.join(f'{sys.argv[1]}: {o}' for o in wrong))
    print(f'{sys.argv[1]}: complete')
