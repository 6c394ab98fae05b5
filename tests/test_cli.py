"The commands: as processes interrupted, killed and resumed; told to do what cannot be done."
import contextlib, io, json, os, signal, subprocess, sys, time
import pytest, torch
from cactus_nb import cli
from cactus_nb.runs import load_tensors
from cactus_nb.tasks.partition import Partitions

FEW = '--encoder pca --n_clusters 100 --n_partitions 2 --n_way 5 --epochs 5 --n_tasks 30 --n_valid 10 --n_test 20'.split()
ARGS = dict(protonets=FEW, maml=[*FEW, *'--method maml --inner_steps 2 --test_steps 3'.split()])


def start(command, *args):
    "A command in a process of its own, on one thread so that weights can be compared to the bit"
    ctrl_c = 'import signal; signal.signal(signal.SIGINT, signal.default_int_handler)' # a test in the background of a shell inherits that it is ignored
    code = f'{ctrl_c}; import torch; torch.set_num_threads(1); from cactus_nb.cli import {command}; {command}()'
    return subprocess.Popen([sys.executable, '-c', code, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {'OMP_NUM_THREADS': '1'})


def finish(command, *args):
    "Exit code, output and the error's line of a command that nobody stops: in this process, which has imported everything"
    out, err, threads = io.StringIO(), io.StringIO(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err): getattr(cli, command)([str(a) for a in args])
        code = 0
    except SystemExit as e: code = e.code
    finally: torch.set_num_threads(threads)
    return code, out.getvalue(), err.getvalue().strip()


@pytest.fixture(scope='module', params=ARGS)
def whole(tmp_path_factory, request):
    "A run that nobody interrupted, in a folder named after its method"
    path = tmp_path_factory.mktemp('runs')/request.param
    code, out, err = finish('cactus_train', '--out', path, *ARGS[request.param])
    assert code == 0, err
    return path


def test_form_of_result(whole):
    "`result.json` has the fields that programs rely on."
    res = json.loads((whole/'result.json').read_text())
    assert {'command', 'data', 'split', 'seconds', 'device', 'commit', 'seed', 'rows'} <= {*res}
    want = {'method', 'embedding', 'transform', 'n_partitions', 'n_way', 'k_shot', 'n_query', 'n_tasks', 'steps', 'bn', 'preset', 'state', 'mean', 'ci95'}
    assert all(want <= {*r} and r['state'] == 'done' and 0 < r['mean'] <= 100 and r['ci95'] > 0 for r in res['rows'])
    assert res['split'] == 'valid' and res['rows'][0]['method'] == f'cactus-{whole.name}' and res['rows'][0]['embedding'] == 'pca'
    assert {'config.json', 'env.json', 'history.csv', 'model.safetensors', 'partitions.npz', 'result.json'} <= {o.name for o in whole.iterdir()}


@pytest.mark.once
@pytest.mark.parametrize('sig', [signal.SIGINT, signal.SIGKILL], ids=['ctrl-c', 'kill'])
def test_resumes(whole, tmp_path, sig):
    "Stopped in the middle of training, the same command goes on and ends at the same weights."
    path = tmp_path/'run'
    p = start('cactus_train', '--out', path, *ARGS[whole.name])
    for _ in range(1200):
        if (path/'checkpoint.safetensors').exists() and load_tensors(path/'checkpoint.safetensors')[1]['epochs'] >= 2: break
        time.sleep(0.05)
    p.send_signal(sig)
    _, err = p.communicate(timeout=60)
    assert not (path/'model.safetensors').exists(), 'it was too late to stop it'
    if sig == signal.SIGINT: assert p.returncode == 130 and 'run the same command again' in err and 'Traceback' not in err
    code, out, err = finish('cactus_train', '--out', path, *ARGS[whole.name])
    assert code == 0, err
    a, b = [load_tensors(o/'model.safetensors')[0] for o in (whole, path)]
    for k in a: assert torch.equal(a[k], b[k]), k
    assert len((path/'history.csv').read_text().splitlines()) == len((whole/'history.csv').read_text().splitlines())


def test_half_written_run(tmp_path):
    "A run without its model says that it was not finished."
    (tmp_path/'config.json').write_text('{}')
    code, _, err = finish('cactus_eval', '--run', tmp_path)
    assert code == 1 and 'training was not finished' in err and len(err.splitlines()) == 1


def test_damaged_model(whole, tmp_path):
    "A cut file is named, and the command fails."
    (tmp_path/'model.safetensors').write_bytes((whole/'model.safetensors').read_bytes()[:1000])
    code, _, err = finish('cactus_eval', '--run', tmp_path)
    assert code == 1 and 'damaged' in err and len(err.splitlines()) == 1


def test_unwritable_target(tmp_path):
    "A target that cannot be written is refused in one line, before anything is computed."
    (tmp_path/'file').write_text('mine')
    code, _, err = finish('cactus_train', '--out', tmp_path/'file'/'run', *FEW)
    assert code == 1 and 'cannot write' in err.lower() and len(err.splitlines()) == 1
    assert (tmp_path/'file').read_text() == 'mine'


def test_folder_of_something_else(tmp_path):
    "A folder with other files is no run folder, is left alone, and `--fresh` does not delete it."
    (tmp_path/'thesis.txt').write_text('mine')
    for command, more in [('cactus_train', []), ('cactus_demo', ['--fresh'])]:
        code, _, err = finish(command, '--out', tmp_path, *more)
        assert code == 1 and 'no run folder' in err
    assert (tmp_path/'thesis.txt').read_text() == 'mine'


def test_missing_data(tmp_path):
    "A folder without the data set is an error that names it."
    code, _, err = finish('cactus_demo', '--data', 'omniglot', '--root', tmp_path, '--out', tmp_path/'run')
    assert code == 1 and str(tmp_path) in err and len(err.splitlines()) == 1 and not (tmp_path/'run').exists()


@pytest.mark.once
def test_own_embedding(tmp_path):
    "An array with the wrong number of rows is refused; one with the right number trains."
    import numpy as np
    from cactus_nb.data.sets import glyphs
    images = glyphs()
    np.save(tmp_path/'short.npy', np.zeros((10, 4), np.float32)); np.save(tmp_path/'nan.npy', np.full((len(images), 4), np.nan, np.float32))
    z = images.x.reshape(len(images), -1)[:, ::16].astype(np.float32); np.save(tmp_path/'z.npy', z)
    few = [o for o in FEW if o not in ('--encoder', 'pca')] # the array is the embedding
    for name, words in [('short', '10 rows for'), ('nan', 'NaN'), ('missing', 'no readable .npy')]:
        code, _, err = finish('cactus_train', '--embedding', tmp_path/f'{name}.npy', '--out', tmp_path/name, *few)
        assert code == 1 and words in err and len(err.splitlines()) == 1, err
    code, out, err = finish('cactus_train', '--embedding', tmp_path/'z.npy', '--out', tmp_path/'run', *few)
    assert code == 0, err
    assert 'cactus-protonets (own)' in out


def test_preset_best(tmp_path):
    "Rounds by the command: trained, resumed, scored round by round; one's own way goes for all rounds, and no label is needed."
    few = '--preset best --n_way 5 --n_tasks 5 --n_valid 10 --split 30,20,20 --n_test 20'.split()
    code, out, err = finish('cactus_train', '--out', tmp_path/'run', *few)
    assert code == 0, err
    cfg, res = (json.loads((tmp_path/'run'/f'{o}.json').read_text()) for o in ('config', 'result'))
    assert [o.get('n_way') for o in cfg['rounds']] == [None, 5, 5] and cfg['rounds'][1]['n_clusters'] == 40 # 600 images
    assert (res['rows'][0]['embedding'], res['rows'][0]['rounds'], res['rows'][0]['steps'], res['rows'][0]['transform']) == ('instance', 3, 5*sum(o['epochs'] for o in cfg['rounds']), 'affine')
    code, out, err = finish('cactus_eval', '--run', tmp_path/'run', '--rounds', '--n_way', '5', '--n_test', '20')
    assert code == 0, err
    code, out, err = finish('cactus_eval', '--run', tmp_path/'run', '--n_way', '5', '--k_shot', '1', '--n_test', '20', '--n_views', 2)
    assert code == 0 and 'over linear on its own embedding with views' in out, err
    assert [(o['method'], o.get('n_views')) for o in json.loads((tmp_path/'run'/'result.json').read_text())['rows']] == [(m, v) for m in ('cactus-protonets', 'linear') for v in (None, 2)]
    learner, layer = json.loads((tmp_path/'run'/'result.json').read_text())['rows'][::2] # as trained and with views: the learner, and a linear layer on what it has learnt
    assert (layer['method'], layer['embedding']) == ('linear', 'learner') and 'over linear on its own embedding' in out
    assert layer['behind']['mean'] == pytest.approx(learner['mean'] - layer['mean'], abs=2e-3)
    rounds = json.loads((tmp_path/'run'/'rounds.json').read_text())
    assert [o['purity'] is None for o in rounds['rounds']] == [True, False, False] and rounds['split'] == 'test'
    assert rounds['bn'] == rounds['rounds'][1]['scores'][0]['bn'] == 'running' and rounds['n_filters'] == 64
    rng = torch.Generator().manual_seed(0)
    from PIL import Image
    (tmp_path/'photos').mkdir()
    for i in range(120): Image.fromarray(torch.randint(0, 256, (28, 28), generator=rng, dtype=torch.uint8).numpy()).save(tmp_path/'photos'/f'{i}.png')
    code, _, err = finish('cactus_eval', '--run', tmp_path/'run', '--rounds', '--data', tmp_path/'photos')
    assert code == 1 and 'leave --data' in err and len(err.splitlines()) == 1
    code, out, err = finish('cactus_train', '--data', tmp_path/'photos', '--size', 28, '--channels', 1, '--out', tmp_path/'own', *few[:8], '--n_rounds', 1, '--n_test', 20)
    assert code == 0 and 'held-out images, each with changed copies of itself' in out, err


def test_folder_step_by_step(tmp_path):
    "A folder with a size of its own, embedded, cut, trained on and scored: each command reads the same images, and rows name the embedding that was cut."
    rng = torch.Generator().manual_seed(0)
    from PIL import Image
    for i in range(96):
        (tmp_path/'photos'/f'{i//8:02}').mkdir(parents=True, exist_ok=True)
        Image.fromarray(torch.randint(0, 256, (20, 20), generator=rng, dtype=torch.uint8).numpy()).save(tmp_path/'photos'/f'{i//8:02}'/f'{i}.png')
    images, task = ('--data', tmp_path/'photos', *'--size 28 --channels 1 --split 6,3,3'.split()), '--n_way 3 --k_shot 1 --n_query 2'.split()
    for command, *args in (['cactus_embed', *images, '--encoder', 'pca', '--n_test', 10, '--k_shot', 1, '--out', tmp_path/'z'], ['cactus_partition', '--run', tmp_path/'z', *task, *'--n_clusters 12 --n_partitions 2'.split(), '--out', tmp_path/'parts'],
                           ['cactus_train', *images, *task, '--partitions', tmp_path/'parts'/'partitions.npz', *'--epochs 1 --n_tasks 5 --n_valid 5 --n_test 10'.split(), '--out', tmp_path/'run'],
                           ['cactus_eval', '--run', tmp_path/'run', '--k_shot', 1, '--n_query', 2, '--n_test', 10]): # three classes: neither 5 nor 20
        code, out, err = finish(command, *args)
        assert code == 0, (command, err)
        if command in ('cactus_train', 'cactus_eval'): assert json.loads((tmp_path/'run'/'result.json').read_text())['rows'][0]['embedding'] == 'pca'
        if command == 'cactus_eval': assert [o['n_way'] for o in json.loads((tmp_path/'run'/'result.json').read_text())['rows'] if o['method'] == 'cactus-protonets'] == [3]
    for file, command, *args in ((tmp_path/'run', 'cactus_train', *images, *task, '--partitions', tmp_path/'parts'/'partitions.npz', *'--epochs 1 --n_tasks 5 --n_valid 5 --n_test 10'.split(), '--out', tmp_path/'run'),
                                 (tmp_path/'run', 'cactus_eval', '--run', tmp_path/'run', '--k_shot', 1, '--n_query', 2, '--n_test', 10, '--plda')): # the file was cut anew in between
        parts = Partitions.load(tmp_path/'parts'/'partitions.npz'); Partitions(parts.labels[:,::-1], parts.notes).save(tmp_path/'parts'/'partitions.npz')
        before = (file/'model.safetensors').read_bytes()
        code, out, err = finish(command, *args)
        assert code == 1 and len(err.splitlines()) == 1 and ('partitions_fingerprint=' in err or 'holds other partitions now' in err) and (file/'model.safetensors').read_bytes() == before, (command, err)
        parts.save(tmp_path/'parts'/'partitions.npz')
    code, out, err = finish('cactus_embed', *images, '--encoder', 'pixels', '--n_test', 10, '--k_shot', 1, '--out', tmp_path/'other')
    assert code == 0, err
    code, out, err = finish('cactus_partition', '--run', tmp_path/'other', *task, *'--n_clusters 12 --n_partitions 2'.split(), '--out', tmp_path/'parts')
    assert code == 1 and 'made_from=' in err and len(err.splitlines()) == 1, err # not the clusters of the first embedding
    code, out, err = finish('cactus_embed', *images[:6], '--encoder', 'pca', '--out', tmp_path/'unlabelled') # no class was asked for, so there is nothing to score
    assert code == 0 and 'Nothing was scored' in out and (tmp_path/'unlabelled'/'embedding.npy').exists(), err
    code, out, err = finish('cactus_train', *images[:6], *task, *'--encoder pca --n_clusters 8 --n_partitions 2 --epochs 1 --n_tasks 5 --n_valid 5 --n_test 10'.split(), '--out', tmp_path/'few') # scored by clusters of three images
    assert code == 0, err
    assert json.loads((tmp_path/'few'/'result.json').read_text())['rows'][0]['n_query'] == 2
    code, out, err = finish('cactus_eval', '--run', tmp_path/'few', '--data', tmp_path/'photos', '--k_shot', 1, '--n_query', 2, '--n_test', 10) # it has learnt from all of them
    assert code == 1 and 'trained on all images of its folder' in err and len(err.splitlines()) == 1, err
    code, out, err = finish('cactus_eval', '--run', tmp_path/'run', '--data', tmp_path/'photos', '--k_shot', 1, '--n_query', 2, '--n_test', 10) # it has three classes that it did not learn from
    assert code == 0 and [o['n_way'] for o in json.loads((tmp_path/'run'/'result.json').read_text())['rows']][0] == 3, err


def test_a_folder_named_as_the_data(tmp_path, monkeypatch, capsys):
    "A folder of results that is called glyphs is not taken for the images."
    monkeypatch.chdir(tmp_path); (tmp_path/'glyphs').mkdir()
    with pytest.raises(SystemExit): cli.cactus_demo(['--n_test', '1'])
    assert 'an interval needs at least 2 tasks' in capsys.readouterr().err


@pytest.mark.once
def test_plda_of_a_folder(tmp_path):
    "Clusters go with the images that they were cut from: of a folder without labels, of rounds that held some out, not of another order, and nobody needs them who did not ask."
    from PIL import Image
    rng = torch.Generator().manual_seed(0)
    def draw(folder, n, each):
        for i in range(n):
            path = tmp_path/folder/(f'{i//each:02}' if each else '')/f'{i:03}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(torch.randint(0, 256, (28, 28), generator=rng, dtype=torch.uint8).numpy()).save(path)
    draw('photos', 120, None); draw('new', 48, 8)
    images, task = ('--data', tmp_path/'photos', *'--size 28 --channels 1'.split()), '--n_way 5 --n_tasks 5 --n_valid 5 --n_test 10'.split()
    for name,*more in (['plain', *'--encoder pca --n_query 2 --n_clusters 12 --n_partitions 2 --epochs 1'.split()], ['rounds', '--preset', 'best', '--n_rounds', 1]):
        code, out, err = finish('cactus_train', *images, *task, *more, '--out', tmp_path/name)
        assert code == 0, err
    def score(name, *more): return finish('cactus_eval', '--run', tmp_path/name, '--data', tmp_path/'new', '--n_way', 5, '--k_shot', 1, '--n_test', 10, *more)
    for name in ('plain', 'rounds'):
        code, out, err = score(name, '--plda')
        rows = json.loads((tmp_path/name/'result.json').read_text())['rows']
        assert code == 0 and [o.get('plda') for o in rows if o['method'] == 'cactus-protonets'] == [None, 0.3], (name, err)
    assert 'plda' in {o['method'] for o in json.loads((tmp_path/'plain'/'result.json').read_text())['rows']} # the embedding alone
    (tmp_path/'photos'/'000.png').rename(tmp_path/'photos'/'zzz.png') # as many, in another order
    code, out, err = score('plain', '--plda')
    assert code == 1 and 'its clusters were cut from' in err and len(err.splitlines()) == 1
    (tmp_path/'photos').rename(tmp_path/'moved')
    code, out, err = score('plain')
    assert code == 0 and 'plda on the embedding alone is not scored' in out, err
