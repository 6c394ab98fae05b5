"The paper's tables as rows: their data, their files, and the command that runs them, on rows of glyphs that take seconds."
import json
from dataclasses import replace
import numpy as np, pytest
from cactus_nb import stages
from cactus_nb.score import reproduce as rep
from cactus_nb.score.reproduce import Figure, OutOfTime, Row, StopInTime, comparison, comparison_table, paper_figure, provenance, read_rows, results_of, rows, run_row, unpack_tasks, why_not

OWN = Row('glyphs-pca-knn', ('own',), 'glyphs', 'knn', 'pca', dict(n_way=5, steps=10_000, n_clusters=60, n_partitions=2), {(5,1): paper_figure('80.00±1.00'), (5,5): paper_figure('90.00R')})
TRAIN = replace(OWN, name='glyphs-pca-cactus-protonets', method='cactus-protonets')


@pytest.fixture
def tiny(monkeypatch):
    "The preset `quick` in a size for tests"
    monkeypatch.setitem(rep.presets, 'quick', rep.presets['quick'] | dict(share=dict(protonets=4e-4, maml=2e-4), most_partitions=2, n_test=20, n_scratch=4, mlp_epochs=5))
    monkeypatch.setattr(rep, 'epoch', 2)
    monkeypatch.setitem(stages.presets['glyphs'], 'split', (60, 20, 30))
    monkeypatch.setitem(rep.trainings['maml'], 'test_steps', 3)
    monkeypatch.setitem(rep.trainings, 'protonets', rep.trainings['protonets'] | dict(n_filters=4, n_query=5))


def run(row, tmp, **kwargs): return run_row(row, 'quick', folder=tmp/'results', work=tmp/'runs', device='cpu', **kwargs)


def test_tables():
    "Every table is whole, every row has its figures and its way to run, and figures from memory are marked."
    count = {t: sum(t in r.tables for r in rows.values()) for t in rep.tables}
    assert count == {'omniglot': 19, 'mini-imagenet': 19, 'celeba': 19, 'mnist': 27, 'ablations': 17}
    ours = [r for r in rows.values() if r.method.endswith('plda')]
    assert len(ours) == 18 and all(r.source.startswith('ours') and set(r.paper.values()) == {None} for r in ours)
    assert rows['omniglot-acai-cactus-maml'].paper[5,1] == Figure(68.84, 'V', 0.8, 'V')
    assert rows['celeba-bigan-cactus-maml'].paper[2,5] == Figure(74.98, 'R', None, None)
    assert rows['omniglot-cactus-maml-random-5way'].paper == {(5,1): None, (5,5): Figure(25.74, 'V', None, None)}
    assert rows['omniglot-cactus-maml-random-20way'].paper == {(20,1): Figure(6.51, 'V', None, None), (20,5): Figure(6.74, 'R', None, None)}
    assert [f.mean for f in rows['mini-imagenet-oracle-protonets'].paper.values()] == [46.56, 62.29, 70.05, 72.04]
    assert all(f is None for n,r in rows.items() if r.data == 'mnist' for f in r.paper.values())


def test_settings_are_the_papers():
    "Full is the protocol, for every row of Omniglot and its ablations."
    for name,row in rows.items():
        if row.data != 'omniglot': continue
        cfg = rep.row_settings(row, 'full')
        assert tuple(cfg['split']) == (1100, 100, 423), name
        if rep._trained(row): assert cfg['lr'] == 1e-3 and cfg['schedule'] == 'constant', name
        if row.method.endswith('protonets'): assert (cfg['bs'], cfg['n_query'], cfg['epochs']*cfg['n_tasks'], cfg['n_filters']) == (1, 15, 30_000, 64), name
        if row.method.endswith('-maml'): assert (cfg['bs'], cfg['n_query'], cfg['epochs']*cfg['n_tasks'], cfg['inner_steps'], cfg['test_steps']) == (8, 5, 240_000, 5, 50), name
    get = lambda name: rep.row_settings(rows[name], 'full')
    assert get('omniglot-acai-cactus-maml')['n_partitions'] == 100 and get('omniglot-acai-cactus-maml-P1')['n_partitions'] == 1
    assert get('omniglot-bigan-cactus-maml-hyperplanes')['n_partitions'] == 2400 and get('omniglot-acai-cactus-maml-hyperplanes-margin1.2')['margin'] == 1.2


def test_methods(tiny, tmp_path):
    "Every method of the tables gives a row with the accuracy of each task, all on the same tasks."
    names = ['knn', 'linear', 'mlp', 'cluster-matching', 'plda', 'from-scratch', 'cactus-protonets', 'cactus-protonets-plda', 'cactus-maml', 'oracle-protonets']
    for m in names:
        res = run(replace(OWN, name=f'glyphs-{m}', method=m, embedding='none' if m.startswith(('oracle', 'from')) else 'pca'), tmp_path)
        assert res['state'] == 'partial' and res['protocol'] == rep.protocol_version and len(res['rows']) == 2, m
        for o in res['rows']: assert abs(unpack_tasks(o).mean() - o['mean']) < 1e-3 and len(unpack_tasks(o)) == o['n_tasks'], m
        assert res['share'] == ({'protonets': 4e-4, 'maml': 2e-4}.get(m.split('-')[1]) if '-' in m and m[:6] in ('cactus', 'oracle') else None)
    found, refused = read_rows(tmp_path/'results')
    assert len(found) == len(names) and not refused
    a, b = (results_of(found[f'glyphs-{m}'][0])[5,5] for m in ('cactus-protonets', 'knn'))
    assert (a - b).n_tasks == 20


def test_stop_and_resume(tiny, tmp_path):
    "A clock that ends after the first epoch leaves a checkpoint; the same row goes on to the same accuracies."
    class Soon(StopInTime):
        def after_epoch(self): raise OutOfTime()
    longer = replace(TRAIN, protocol=TRAIN.protocol | dict(steps=20_000))
    with pytest.raises(OutOfTime): run(longer, tmp_path/'a', stop=Soon())
    assert not (tmp_path/'a'/'results').exists() and [*(tmp_path/'a').rglob('checkpoint.safetensors')]
    res = [run(longer, tmp_path/o) for o in 'ab']
    assert res[0]['rows'] == res[1]['rows'] and res[0]['rows'][0]['steps'] == 8


def test_time_is_over(tiny, tmp_path):
    "A clock that has run out stops before anything is computed."
    stop = StopInTime(1); stop.until = 0
    with pytest.raises(OutOfTime): run(OWN, tmp_path, stop=stop)


def test_comparison(tiny, tmp_path):
    "The difference and the overlap follow from the file; figures from memory are not measured against."
    res = run(OWN, tmp_path)
    df = comparison('own', tmp_path/'results', {OWN.name: OWN, TRAIN.name: TRAIN})
    one, memory = df.iloc[0], df.iloc[1]
    assert one.difference == round(res['rows'][0]['mean'] - 80, 2) and one.overlap == (abs(one.difference) <= one.ci95 + 1)
    assert memory['mark'] == 'R' and memory.overlap is None and np.isnan(memory.difference) and np.isnan(memory.paper_ci95)
    assert [*df.state] == ['partial']*2 + ['pending']*2 and df.why.iloc[2] == 'not run'
    assert len(comparison_table(df)) == len(provenance(df)) == 2
    for t in rep.tables: assert {*comparison(t, tmp_path/'none').state} == {'pending'}


def test_the_nearest_to_the_protocol_is_shown(tiny, tmp_path):
    "Of several results of one seed, one that is done, then full, then with the larger share."
    res = run(TRAIN, tmp_path)
    for name,more in dict(a=dict(preset='full', share=0.1), b=dict(preset='full', share=0.5), c=dict(preset='quick', share=1.)).items():
        (tmp_path/'results'/f'{TRAIN.name}.{name}.json').write_text(json.dumps(res | more))
    df = comparison('own', tmp_path/'results', {TRAIN.name: TRAIN})
    assert len(df) == 2 and {*df.share} == {0.5}


def test_other_protocol_is_refused(tiny, tmp_path):
    "A result of another protocol is neither gone on with nor shown, and the reason is said; so is a file of something else."
    res = run(OWN, tmp_path)
    path = next((tmp_path/'results').iterdir())
    path.write_text(json.dumps(res | dict(protocol=99)))
    with pytest.raises(ValueError, match='protocol 99, and this library has protocol'): run(OWN, tmp_path)
    df = comparison('own', tmp_path/'results', {OWN.name: OWN})
    assert [*df.state] == ['pending']*2 and 'protocol 99' in df.why.iloc[0] and df.ours.isna().all()
    path.write_text('{"command": "cactus_eval"}')
    with pytest.raises(ValueError, match='no result of cactus_reproduce'): run(OWN, tmp_path)
    path.write_text('{"comm')
    with pytest.raises(ValueError, match='not complete JSON'): run(OWN, tmp_path)


def test_pretrained(monkeypatch):
    "Where there is a card for the data, split and seed, its encoder is taken, and the row says so; not for another seed."
    fits = dict(encoder='ACAI', data='omniglot', split=[1100, 100, 423], seed=0)
    monkeypatch.setattr(rep, 'pretrained_cards', lambda: {'bigan-omniglot': fits | dict(encoder='BiGAN'), 'acai-omniglot': fits})
    cfg = lambda seed: rep.row_settings(rows['omniglot-acai-knn'], 'full', seed)
    assert rep._card(cfg(0)) == 'acai-omniglot' and rep._card(cfg(1)) is None
    assert rep._card(cfg(0) | dict(split=(1000, 200, 423))) is None and rep._card(cfg(0) | dict(encoder='pca')) is None


def test_why_not(monkeypatch):
    "What cannot be run says why."
    monkeypatch.setattr(rep, '_there', lambda data: data != 'omniglot')
    assert 'CACTUS_DATA' in why_not(rows['omniglot-acai-knn'])
    monkeypatch.setattr(stages, 'datasets', {k: v for k,v in stages.datasets.items() if k != 'mnist'}) # a copy: put back, the order too
    assert 'the reader of mnist' in why_not(rows['mnist-acai-knn'])
    monkeypatch.setitem(stages.datasets, 'mini-imagenet', None); monkeypatch.setitem(stages.presets, 'mini-imagenet', {})
    monkeypatch.setattr(rep.torch.cuda, 'is_available', lambda: False)
    heavy = rows['mini-imagenet-bigan-cactus-maml']
    assert 'needs a GPU' in why_not(heavy) and why_not(heavy, 'quick') is None and why_not(heavy, device='cpu') is None


def test_command(tmp_path, monkeypatch, capsys):
    "The list shows every row without any data; wrong words are one line and a non-zero exit."
    monkeypatch.delenv('CACTUS_DATA', raising=False); monkeypatch.setenv('FASTAI_HOME', str(tmp_path))
    def call(*args):
        try: rep.cactus_reproduce([*args, '--out', str(tmp_path/'results'), '--work', str(tmp_path/'runs')]); code = 0
        except SystemExit as e: code = e.code
        out, err = capsys.readouterr()
        return code, out, err.strip()
    code, out, err = call('--list')
    assert code == 0 and all(n in out for n in rows) and f'{len(rows)} rows: {len(rows)} pending' in out, err
    assert out.count('celeba() says where to get them') == out.count('mini_imagenet() says where to get them') - 1 == 1 # once a table
    assert why_not(rows['omniglot-acai-knn']) is None and why_not(rows['mnist-acai-knn']) is None # their readers download
    code, out, err = call('--row', 'mini-imagenet-bigan-knn')
    assert code == 1 and 'CACTUS_DATA' in err and len(err.splitlines()) == 1 and not (tmp_path/'runs').exists()
    res = dict(command='cactus_reproduce', row='omniglot-acai-knn', protocol=rep.protocol_version, state='done', preset='full', share=None, seed=0, commit='abc', rows=[dict(n_way=5, k_shot=1, mean=62.12, n_tasks=1000)])
    (tmp_path/'results').mkdir()
    for name,o in dict(a=res, b=res | dict(protocol=99)).items(): (tmp_path/'results'/f'omniglot-acai-knn.full.{name}.json').write_text(json.dumps(o))
    code, out, err = call('--list', '--table', 'omniglot')
    assert code == 0 and '62.12 (57.46)' in out and 'omniglot-acai-knn, another result that is not shown:' in out and 'protocol 99' in out and f'19 rows: 18 pending, 1 done' in out, err
    code, out, err = call('--row', 'nothing')
    assert code == 1 and '--list shows the rows' in err
    code, out, err = call('--table', 'celeba') # all rows pending: said, and nothing failed
    assert code == 0 and out.count('pending, ') == 19, err


def test_one_failure_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    "A row that fails is named at the end, and the others are run."
    tried = []
    def fake(row, **kwargs):
        tried.append(row.name)
        if len(tried) == 1: raise ValueError('the training diverged')
        if len(tried) == 2: raise ConnectionError('the host is away')
        return dict(rows=[], state='partial', minutes=0., device='cpu')
    monkeypatch.setattr(rep, 'run_row', fake); monkeypatch.setattr(rep, 'why_not', lambda *a: None)
    with pytest.raises(SystemExit): rep.cactus_reproduce(['--table', 'omniglot', '--out', str(tmp_path)])
    err = capsys.readouterr().err.strip().splitlines()
    assert len(tried) == 19 and '2 of 19 rows failed: omniglot-from-scratch (the training diverged); omniglot-bigan-knn (the host is away)' in err[-1]


@pytest.mark.once
def test_celeba_rows(tiny, tmp_path, monkeypatch):
    "The rows of CelebA train on clusters or on tasks of attributes, and are scored on tasks of other attributes; no label is read from its clusters."
    from test_papers import draw_celeba
    monkeypatch.setenv('CACTUS_DATA', str(tmp_path)); monkeypatch.setenv('CACTUS_CACHE', str(tmp_path/'cache'))
    monkeypatch.setitem(rep.trainings['maml'], 'n_filters', 4)
    draw_celeba(tmp_path/'celeba', 120)
    monkeypatch.setitem(stages.presets['celeba'], 'n_clusters', 10)
    for k in ('cactus-maml', 'oracle-protonets', 'knn'):
        row = replace(rows[f'celeba-oracle-{k[7:]}' if k[0] == 'o' else f'celeba-bigan-{k}'], protocol=dict(n_way=2, steps=10_000, n_clusters=10, n_partitions=2))
        row = replace(row, embedding='none' if k[0] == 'o' else 'pca', name=f'own-{k}')
        res = run(row, tmp_path)
        assert [(o['n_way'], o['k_shot'], o['n_tasks']) for o in res['rows']] == [(2, 5, 20)] and res['data'] == 'celeba', k
