"Everything that may change stands in settings.ini: edit there, not here."
from configparser import ConfigParser
import setuptools

config = ConfigParser(delimiters=['='])
config.read('settings.ini', encoding='utf-8')
cfg = config['DEFAULT']

expected = 'lib_name lib_path version description keywords author license status min_python audience language git_url'.split()
missing = [o for o in expected if o not in cfg]
if missing: raise SystemExit(f'settings.ini lacks {", ".join(missing)}')

licenses = {'apache2': 'Apache-2.0', 'mit': 'MIT', 'bsd3': 'BSD-3-Clause'}
statuses = ['1 - Planning', '2 - Pre-Alpha', '3 - Alpha', '4 - Beta', '5 - Production/Stable', '6 - Mature', '7 - Inactive']
pythons  = '3.10 3.11 3.12 3.13'.split()
lib, min_python = cfg['lib_path'], cfg['min_python']
with open('README.md', encoding='utf-8') as f: readme = f.read()

setuptools.setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=readme,
    long_description_content_type='text/markdown',
    keywords=cfg['keywords'],
    author=cfg['author'],
    license=licenses.get(cfg['license'], cfg['license']),
    url=cfg['git_url'],
    classifiers=[
        'Development Status :: ' + statuses[int(cfg['status']) - 1],
        'Intended Audience :: ' + cfg['audience'],
        'Natural Language :: ' + cfg['language'],
    ] + ['Programming Language :: Python :: ' + o for o in pythons[pythons.index(min_python):]],
    packages=setuptools.find_packages(include=[lib, lib + '.*']),
    include_package_data=True,
    install_requires=cfg.get('requirements', '').split(),
    extras_require={o: cfg.get(f'{o}_requirements', '').split() for o in ('dev', 'browser')},
    python_requires='>=' + min_python,
    zip_safe=False,
    entry_points={
        'console_scripts': cfg.get('console_scripts', '').split(),
        'nbdev': [f'{lib}={lib}._modidx:d'],
    },
)
