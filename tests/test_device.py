"The same everywhere: tasks, gradients, clusters, scores and commands on the device of `--device`, beside the processor's."
import json, warnings
from functools import partial
from pathlib import Path

import numpy as np, pytest, torch, torch.nn.functional as F
from fastai.callback.core import Callback

from cactus_nb.backbones import conv4, conv4_classifier
from cactus_nb.cli import cactus_embed, cactus_eval, cactus_partition, cactus_train
from cactus_nb.data.sets import glyphs
from cactus_nb.encoders.core import PCA, Encoder
from cactus_nb.meta.capture import CaptureCallback
from cactus_nb.meta.learner import Bfloat16, load_run, maml_learner, proto_learner, save_run, with_plda, with_views
from cactus_nb.meta.maml import maml_logits
from cactus_nb.meta.protonet import proto_logits
from cactus_nb.meta.rounds import Round, fit_rounds
from cactus_nb.runs import tf32
from cactus_nb.score.evaluate import evaluate
from cactus_nb.stages import trained
from cactus_nb.tasks.partition import kmeans_partitions, label_partition
from cactus_nb.tasks.sample import TaskSampler, task_dls
from cactus_nb.tasks.sources import InstanceSampler, MixedSampler, NeighbourSampler

images, test, _ = glyphs().split_classes(60, 20, 0, seed=0)
z = PCA(16).fit(images.unlabelled()).embed(images)
methods = dict(protonets=(proto_learner, lambda: conv4(n_filters=8, seed=0)), maml=(partial(maml_learner, test_steps=5), lambda: conv4_classifier(5, n_filters=8, seed=0)))
on_gpu = pytest.mark.skipif("config.getoption('--device') == 'cpu'", reason='needs a GPU: --device cuda')

@pytest.fixture(autouse=True)
def as_float32():
    with tf32(False): yield

def dls(device, transform='affine', bs=2, n_tasks=24, **kwargs):
    return task_dls(images.unlabelled(), label_partition(images), n_way=5, k_shot=1, n_query=3, bs=bs, n_tasks=n_tasks, n_valid=4, transform=transform, device=device, **kwargs)

def learner(method, device, *cbs, **kwargs):
    make, net = methods[method]
    return make(dls(device, **kwargs), net(), cbs=list(cbs))

def fit(learn, *args, **kwargs):
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(*args, **kwargs)
    return learn

def relative(a, b): return ((a - b).norm()/b.norm()).item()
def flat(ts): return torch.cat([t.detach().flatten().cpu() for t in ts])

sources = dict(clusters=lambda: TaskSampler(kmeans_partitions(z, 30, 3), 5, 1, 3, 0), images=lambda: InstanceSampler(len(images), 5, 1, 3, 0), neighbours=lambda: NeighbourSampler(z, 10, 5, 1, 3, 0))
sources['mixed'] = lambda: MixedSampler([sources['clusters'](), sources['images']()], [0.5, 0.5])

@pytest.mark.parametrize('name', sources)
def test_tasks(name, device):
    "Every task has the same images, whoever draws it."
    tasks = torch.arange(1000)
    assert torch.equal(sources[name]().to(device).rows_of(tasks).cpu(), sources[name]().rows_of(tasks))

def test_views_and_plda(device):
    "Class scores from views and clusters are the processor's, wherever the network is."
    xs, ys, xq, _ = dls('cpu', 'none').one_batch()
    parts = kmeans_partitions(z, 30, 3)
    def logits(at):
        learn = proto_learner(dls(at), conv4(n_filters=8, seed=0).to(at))
        return with_plda(with_views(learn, n_views=2), images.unlabelled(), parts).plda.task_logits(xs, ys.to(at), xq).cpu()
    assert relative(logits(device), logits('cpu')) < 1e-3

@pytest.mark.parametrize('transform', [None, 'affine', 'affine,blur', 'elastic,crop,flip,colour'])
def test_meta_batches(transform, device):
    "The same pixels, transformed alike."
    for a,b in zip(dls(device, transform).one_batch(), dls('cpu', transform).one_batch()):
        assert a.device.type == device.type
        assert torch.allclose(a.cpu(), b, atol=1e-4)

@pytest.mark.parametrize('method', methods)
@pytest.mark.parametrize('dtype,most', [(torch.float64, 1e-9), (torch.float32, 2e-3)])
def test_gradients(method, dtype, most, device):
    "The gradients of one meta-batch, of second order too."
    batch = dls('cpu').one_batch()
    def gradients(where):
        xs, ys, xq, yq = [o.to(where, dtype if o.is_floating_point() else None) for o in batch]
        net = methods[method][1]().to(where, dtype)
        if method == 'maml': logits = maml_logits(net, dict(net.named_parameters()), xs, ys, xq, 0.1, 3)
        else: logits = torch.cat([proto_logits(net(a)[None], y[None], net(b)[None], 5) for a,y,b in zip(xs, ys, xq)])
        F.cross_entropy(logits.flatten(0, 1), yq.flatten()).backward()
        return flat(p.grad for p in net.parameters())
    assert relative(gradients(device), gradients('cpu')) < most

@pytest.mark.parametrize('keep', [True, False])
def test_clusters(keep, device, monkeypatch):
    "As good as on the processor, the same twice, and read by parts where they are many."
    import cactus_nb.tasks.partition as p
    if not keep: monkeypatch.setattr(p, 'Points', lambda z, keep, device: points(z, 0, device)); from cactus_nb.kmeans import Points as points
    there, again, here = [kmeans_partitions(z, 40, 4, seed=0, device=o) for o in (device, device, 'cpu')]
    assert np.array_equal(there.labels, again.labels)
    cost = lambda parts: np.mean([o['inertia'] for o in parts.notes])
    usable = lambda parts: np.mean([o['usable'] for o in parts.notes])
    assert cost(there) < 1.02*cost(here) and usable(there) > 0.95*usable(here)

@pytest.mark.parametrize('method', methods)
def test_training_and_scores(method, device, tmp_path):
    "What was trained on the device is saved, loaded on the processor, and scored alike."
    learn = fit(learner(method, device, n_tasks=60, transform=None), 2, 1e-2)
    losses = [float(o) for o in learn.recorder.losses]
    assert losses[-1] < losses[5]
    save_run(learn, tmp_path/'run')
    there, here = load_run(tmp_path/'run', device=device), load_run(tmp_path/'run')
    assert {p.device.type for p in there.model.parameters()} == {device.type}
    a, b = [evaluate(o, test, n_way=5, k_shot=1, n_tasks=20) for o in (there, here)]
    assert abs(a.mean - b.mean) < 1 and np.abs(a.per_task - b.per_task).max() < 15 # of 25 queries, a few may sit on a border

@pytest.mark.parametrize('cb', [Bfloat16, lambda: None])
def test_precision(cb, device):
    "Fewer digits learn too: bfloat16, or TF32 where the device has it."
    with tf32(True): learn = fit(learner('protonets', device, *filter(None, [cb()])), 1, 2e-3)
    assert all(np.isfinite(float(o)) for o in learn.recorder.losses)
    assert {p.dtype for p in learn.model.parameters()} == {torch.float32}

@on_gpu
@pytest.mark.parametrize('method', methods)
@pytest.mark.parametrize('kind', ['plain', 'bfloat16', 'running'])
def test_recorded(method, kind, device):
    "A hundred recorded steps under one-cycle end where those without a recording end, as near as two of these are to each other."
    if (method, kind) in (('maml', 'bfloat16'), ('protonets', 'running')): pytest.skip('there is no such thing')
    def run(*cbs):
        make, net = methods[method]
        net = conv4_classifier(5, n_filters=8, stats='running', seed=0) if kind == 'running' else net()
        return fit(make(dls(device, n_tasks=99), net, cbs=[*cbs, *([Bfloat16()] if kind == 'bfloat16' else [])]), 2, 2e-3)
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='CaptureCallback')
        plain, other, ours = run(), run(), run(cb := CaptureCallback())
    assert cb.why_not is None
    far = lambda a, b: (flat(a.model.state_dict().values()).float() - flat(b.model.state_dict().values()).float()).abs().mean().item()
    assert far(plain, ours) <= 5*far(plain, other) + 1e-6
    losses = [[float(o) for o in l.recorder.losses[:20]] for l in (plain, ours)]
    assert np.allclose(*losses, rtol=3e-2 if kind == 'bfloat16' else 2e-3)

@on_gpu
@pytest.mark.parametrize('method', methods)
def test_nothing_waits(method, device):
    "Once the recording runs, no order of a step waits for the device."
    class NoWaiting(Callback):
        run_valid, order, steps = False, -1000, 0 # before all others
        def before_batch(self):
            strict = 10 <= self.iter < self.n_iter - 1
            self.steps += strict
            torch.cuda.set_sync_debug_mode('error' if strict else 'default')
        def after_train(self): torch.cuda.set_sync_debug_mode('default')
        after_cancel_train = after_fit = after_cancel_fit = after_train
    cb, watch = CaptureCallback(), NoWaiting()
    cb._why_not = lambda: None # `watch` acts before a batch, and not on it
    try: fit(learner(method, device, cb, watch, n_tasks=80), 2, 2e-3)
    finally: torch.cuda.set_sync_debug_mode('default')
    assert cb.why_not is None and watch.steps == 2*29

@on_gpu
def test_recording_refused(device):
    "A loss that asks for a result cannot be recorded; the training goes on without, with a word, and the next one is recorded."
    def nosy(pred, targ): loss = F.cross_entropy(pred.flatten(0, 1), targ.flatten()); return loss*(1 if loss.item() >= 0 else -1)
    learn = learner('protonets', device, CaptureCallback())
    learn.loss_func = nosy
    with pytest.warns(UserWarning, match='could not be recorded'): fit(learn, 1, 2e-3)
    assert len(learn.recorder.losses) == 12
    torch.rand(2, device=device) # the generator is whole
    fit(learner('protonets', device, again := CaptureCallback()), 1, 2e-3)
    assert again.why_not is None

def test_rounds(device):
    "Rounds on the device, with recorded steps where there are some."
    n = len(images)
    d = task_dls(images.unlabelled(), InstanceSampler(n, 10, 1, 2, 0), test, n_way=10, k_shot=1, n_query=2, bs=1, n_tasks=20, n_valid=4, transform='affine', device=device)
    learn = proto_learner(d, conv4(n_filters=8, seed=0))
    cbs = [CaptureCallback()] if device.type != 'cpu' else None
    with learn.no_bar(), learn.no_logging(): log = fit_rounds(learn, [Round(1), Round(1, 40, turns=4, n_way=10, k_shot=1, n_query=2)], cbs=cbs).log
    assert [o['round'] for o in log] == [0, 1] and all(0 < o['agreement'] <= 1 for o in log)
    if cbs: assert cbs[0].why_not is None

@pytest.mark.parametrize('name', trained)
def test_encoders(name, device, tmp_path):
    "Every encoder learns on the device, and its file is read on the processor."
    some = images.unlabelled()[:200]
    enc = trained[name](**dict(n_epochs=1, device=device, quiet=True) | (dict(n_clusters=10) if name == 'deepcluster' else {}))
    there = enc.fit(some).embed(some)
    enc.save(tmp_path/'enc.safetensors')
    here = Encoder.load(tmp_path/'enc.safetensors').embed(some)
    assert there.dtype == np.float32 and there.shape == here.shape
    assert np.abs(there - here).max() <= 1e-2*np.abs(here).max()

def test_commands(device, tmp_path):
    "The commands take the device, name it in what they write, and go on from each other."
    def run(command, *args): command([*args, '--device', str(device)])
    run(cactus_embed, '--split', '60,20,20', '--encoder_epochs', '1', '--n_test', '10', '--out', f'{tmp_path}/e')
    run(cactus_partition, '--run', f'{tmp_path}/e', '--n_clusters', '40', '--n_partitions', '2', '--n_way', '5')
    precision = 'tf32' if device.type == 'cuda' and torch.cuda.get_device_capability(device)[0] >= 8 else 'float32'
    run(cactus_train, '--split', '60,20,20', '--partitions', f'{tmp_path}/e/kmeans/partitions.npz', '--n_way', '5', '--epochs', '1', '--n_tasks', '20', '--n_test', '10', '--precision', precision, '--out', f'{tmp_path}/t')
    run(cactus_eval, '--run', f'{tmp_path}/t', '--n_test', '10', '--n_way', '5')
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else device.type
    for path in ('e', 'e/kmeans', 't'): assert json.loads((tmp_path/path/'result.json').read_text())['device'] == name
    assert json.loads((tmp_path/'t'/'result.json').read_text())['rows'][0].get('precision', 'float32') == precision # as all are that say nothing of it

@pytest.fixture(scope='module')
def script():
    from importlib.util import module_from_spec, spec_from_file_location
    path = Path(__file__).resolve().parent.parent/'.ci'/'on_gpu.py'
    spec = spec_from_file_location('on_gpu', path); m = module_from_spec(spec); spec.loader.exec_module(m)
    return m

def test_script_knows_the_commands(script, tmp_path):
    "Each step is a command with options that it has, and no step writes over another."
    from inspect import signature
    import cactus_nb.bench as b, cactus_nb.cli as c, cactus_nb.score.reproduce as r
    found = script.steps('cuda', tmp_path, tmp_path/'work')
    for line in [o.line for o in found.values()]:
        name, *args = line.split()
        if name == 'pytest': continue
        command = next(getattr(m, name) for m in (b, r, c) if hasattr(m, name))
        assert not {o[2:] for o in args if o.startswith('--')} - {*signature(command).parameters}, line
        if '--row' in args: assert args[args.index('--row')+1] in r.rows, line
        if '--rows' in args: assert args[args.index('--rows')+1] in b.works | b.on_gpu, line
    for kind in (lambda o: o.line, lambda o: o.made):
        all = [*filter(None, map(kind, found.values()))]
        assert len({*all}) == len(all)
    assert {*script.speed} == {*(b.works | b.on_gpu)} - {'demo'}

def test_script_goes_on(script, tmp_path):
    "What is done is not done again, what was cut off is, what fails is noted and stops nothing."
    (tmp_path/'x.py').write_text('import sys, time, pathlib\np = pathlib.Path(sys.argv[1]); p.write_text(p.read_text() + "1" if p.exists() else "1"); time.sleep(float(sys.argv[2])); sys.exit(int(sys.argv[3]))')
    def step(name, seconds, code=0, made=None, **kw): return script.Step(f'x {tmp_path}/{name} {seconds} {code}', f'{tmp_path}/{made or name}', not code, **kw)
    import os
    os.environ['PYTHONPATH'], was = str(tmp_path), os.environ.get('PYTHONPATH')
    try:
        found = dict(first=step('a', 0), bad=step('b', 0, 4), nothing=step('e', 0, made='nowhere'), long=step('c', 60, cap=1), never=step('d', 0))
        assert script.main(found, tmp_path/'out', 7/60, spare=0, packed=tmp_path/'all.tar.gz') == 3
        state = {k: v['state'] for k,v in json.loads((tmp_path/'out'/'state.json').read_text()).items() if k != 'never'}
        assert state == dict(first='done', bad='failed', nothing='failed', long='unfinished') # what wrote nothing is not done
        import shutil, tarfile
        shutil.rmtree(tmp_path/'out')
        with tarfile.open(tmp_path/'all.tar.gz') as t: script.unpack(t, tmp_path/'out')
        found['long'] = step('c', 0)
        assert script.main(found, tmp_path/'out', 1, spare=0) == 0
    finally: os.environ.pop('PYTHONPATH') if was is None else os.environ.update(PYTHONPATH=was)
    assert [(tmp_path/o).read_text() for o in 'abcd'] == ['1', '1', '11', '1']
    assert (tmp_path/'out'/'first.json').read_text() == '1' and '$ x' in (tmp_path/'out'/'bad.log').read_text()
