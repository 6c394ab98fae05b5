"Encoders at their edges: what is refused, what stays on disk, what a file brings back."
import tracemalloc, warnings
import numpy as np, pytest, torch
from fastai.callback.core import Callback
from torch import nn
from cactus_nb.data.core import ImageSet
from cactus_nb.data.sets import glyphs
from cactus_nb.encoders import core
from cactus_nb.encoders.acai import ACAI
from cactus_nb.encoders.bigan import BiGAN
from cactus_nb.encoders.core import *
from cactus_nb.encoders.deepcluster import *
from cactus_nb.encoders.infogan import InfoGAN, InfoGANNet, infogan_loss
from cactus_nb.encoders.instance import Instance
from cactus_nb.encoders.whiten import *
from cactus_nb.runs import Run
from cactus_nb.score.baselines import embedding_report
from cactus_nb.stages import embed_stage, fit_to, load_splits, preset

rng = np.random.default_rng(0)
images = ImageSet(rng.integers(0, 256, (200,1,8,8), dtype=np.uint8), rng.integers(0, 5, 200))
colour = ImageSet(rng.integers(0, 256, (40,3,8,8), dtype=np.uint8))
def small(c=1): return nn.Sequential(nn.Conv2d(c, 4, 3), nn.BatchNorm2d(4), nn.Flatten())


class Witness(Encoder):
    "Keeps what it was shown"
    def _fit(self, images): self.fitted = images
    def _embed(self, images): self.embedded = images; return images.x.reshape(len(images), -1)

@pytest.mark.parametrize('wrap', [lambda e: e, Normalised, Whitened, lambda e: Normalised(Whitened(e, 5))])
def test_no_labels(wrap):
    "What learns and what embeds sees no label, however deep it is wrapped."
    inner = Witness()
    wrap(inner).fit(images).embed(images)
    assert inner.fitted.y is None and inner.embedded.y is None

@pytest.mark.parametrize('enc', [Pixels(), Pixels(contrast=False), Normalised(Pixels()), Whitened(Pixels(), 7), Normalised(Whitened(PCA(9), 4)), Whitened(Normalised(PCA(9, whiten=True)))])
def test_saved_and_loaded(enc, tmp_path):
    enc.fit(images).save(tmp_path/'e.safetensors')
    again = Encoder.load(tmp_path/'e.safetensors')
    assert (again.embed(images) == enc.embed(images)).all() and again.config == enc.config
    assert (again.name, again.variant) == (enc.name, enc.variant)

def test_trained_by_its_learner():
    "An encoder whose learner is trained by itself has learnt; one whose learner was made anew has not, until then."
    enc, large = Autoencoder(n_latent=4, n_epochs=1, quiet=True), ImageSet(rng.integers(0, 256, (60,1,16,16), dtype=np.uint8))
    learn = enc.fit(large).learner(large)
    with pytest.raises(ValueError, match='has not learnt yet'): enc.embed(large)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert enc.embed(large).shape == (60, 4)

def test_what_cannot_be_saved(tmp_path):
    with pytest.raises(ValueError, match='Witness does not define state'): Witness().fit(images).save(tmp_path/'e')
    with pytest.raises(ValueError, match='Normalised does not define state'): Normalised(Witness()).fit(images).save(tmp_path/'e')
    assert not list(tmp_path.iterdir())

def test_unknown_inside(tmp_path, monkeypatch):
    Normalised(PCA(3)).fit(images).save(tmp_path/'e.safetensors')
    monkeypatch.delitem(Encoder.known, 'PCA')
    with pytest.raises(ValueError, match="holds encoder 'PCA'; known here"): Encoder.load(tmp_path/'e.safetensors')


# memory

@pytest.mark.parametrize('make', [lambda gb: PCA(8, max_gb=gb), lambda gb: Whitened(Pixels(contrast=False), 8)], ids=['pca', 'whitened'])
def test_large_map_is_not_read_whole(make, tmp_path, monkeypatch):
    "2,000 colour images in a file, 169 MB as floats, are learnt from within a share of that."
    from cactus_nb.encoders import whiten
    monkeypatch.setattr(whiten, '_sample', lambda images, d: core._sample(images, d, 0.01))
    np.save(tmp_path/'x.npy', rng.integers(0, 256, (2000,3,84,84), dtype=np.uint8))
    mapped = ImageSet(np.load(tmp_path/'x.npy', mmap_mode='r'))
    make(1).fit(mapped[:20])  # imports
    with pytest.warns(UserWarning, match='Learning from 118 of 2,000 images, drawn by seed 0: as floats all would take 0.17 GB'):
        tracemalloc.start()
        enc = make(0.01).fit(mapped)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 60e6
    assert enc.embed(mapped[:5]).shape == (5, 8)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        make(1).fit(mapped[:100])  # which fits


@pytest.mark.filterwarnings('ignore:Learning from')
def test_sample_is_seeded():
    a,b,c = (core._sample(images, 64, 50*64*4e-9, seed).ids.tolist() for seed in (0, 0, 1))
    assert a == b != c and len(a) == 50 and a == sorted(a, key=int) and len({*a}) == 50
    assert core._sample(images, 64, 200*64*4e-9) is images
    with pytest.raises(ValueError, match='but 3 images of'): PCA(8, max_gb=3*64*4e-9).fit(images)


# whitening

def test_whitened_wide():
    "More dimensions than the covariance is made for: a randomised SVD."
    wide = ImageSet(rng.integers(0, 256, (60,3,40,40), dtype=np.uint8))
    z = Whitened(Pixels(), 8).fit(wide).embed(wide)
    assert z.shape == (60, 8)
    np.testing.assert_allclose(np.cov(z.T), np.eye(8), atol=1e-2)

@pytest.mark.parametrize('n', [0, -3, 65])
def test_whitened_refuses(n):
    with pytest.raises(ValueError, match=f'Whitening to {n} of 64 dimensions'): Whitened(Pixels(), n).fit(images)

def test_whitened_finds_nan():
    class Bad(Witness):
        def _embed(self, images): return np.where(np.arange(len(images))[:,None] == 3, np.nan, images.x.reshape(len(images), -1))
    with pytest.raises(ValueError, match='NaN or infinity in 1 of 200 rows, the first is row 3'): Whitened(Bad(), 4).fit(images)

def test_whitened_keeps_what_learnt():
    pca = PCA(5).fit(images[:100])
    before = pca.embed(images)
    Whitened(pca).fit(images[100:])
    assert (pca.embed(images) == before).all()


# torch modules

def test_module_batches_and_mode(tmp_path):
    "Batch size changes nothing, batch norm uses what it has and learns nothing, gradients stay off, and a file brings it back inside a step too."
    net = small().train()
    stats = net[1].running_mean.clone()
    enc = ModuleEncoder(net)
    z = enc.embed(images)
    np.testing.assert_allclose(ModuleEncoder(net, bs=7).embed(images), z, atol=1e-6)
    assert (net[1].running_mean == stats).all() and not net.training and all(p.grad is None for p in net.parameters())
    step = Normalised(Whitened(enc, 6)).fit(images)
    step.save(tmp_path/'e.safetensors')
    assert (Encoder.load(tmp_path/'e.safetensors', model=small()).embed(images) == step.embed(images)).all()
    with pytest.raises(ValueError, match='not an nn.Module'): Encoder.load(tmp_path/'e.safetensors')
    with pytest.raises(ValueError, match='weights of another module'): Encoder.load(tmp_path/'e.safetensors', model=small(3))

def test_module_channels_and_types():
    "Grey and colour, a module without weights, one in half precision; embeddings are float32."
    assert ModuleEncoder(small(3), channels=3).embed(images).shape == ModuleEncoder(small(3)).embed(colour).shape[:0] + (200, 144)
    assert ModuleEncoder(nn.Flatten(), size=(4,6)).embed(colour).shape == (40, 3*4*6)
    np.testing.assert_allclose(ModuleEncoder(nn.Flatten(), mean=0.5, std=[0.25]).embed(images), (Pixels(contrast=False).embed(images) - 0.5)/0.25, atol=1e-6)
    assert ModuleEncoder(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).to(torch.bfloat16)).embed(images).dtype == np.float32
    with pytest.raises(ValueError, match='images: 3 channels where 1 is needed'): ModuleEncoder(small(), channels=1).embed(colour)
    with pytest.raises(ValueError, match='std: 2 channels where 3 are needed'):   ModuleEncoder(small(3), std=[1,2]).embed(colour)

class Gives(nn.Module):
    def __init__(self, f): super().__init__(); self.f = f
    def forward(self, x): return self.f(x)

@pytest.mark.parametrize('f, words', [(lambda x: x.mean(), r'a tensor \(\)'), (lambda x: x.flatten(1)[:1], r'a tensor \(1, 64\)'), (lambda x: (x, x), 'a tuple'), (lambda x: x.flatten(1)/0, 'NaN or infinity'),
                                      (lambda x: x @ torch.zeros(3, 3), r'failed on images \(200, 1, 8, 8\)')])
def test_module_outputs(f, words):
    with pytest.raises(ValueError, match=words): ModuleEncoder(Gives(f)).embed(images)

@pytest.mark.parametrize('model', [None, small, 'resnet18'])
def test_no_module(model):
    with pytest.raises(ValueError, match='not an nn.Module'): ModuleEncoder(model)


# arrays

@pytest.mark.parametrize('dtype', [np.float16, np.float32, np.float64, np.int16])
def test_mapped_rows(dtype, tmp_path):
    "A file stays where it is; rows come as float32, whole or in any order, and so does what is saved."
    z = (100*rng.normal(size=(200, 6))).astype(dtype)
    np.save(tmp_path/'z.npy', z)
    for own in (OwnEmbedding(tmp_path/'z.npy', images), OwnEmbedding(np.load(tmp_path/'z.npy', mmap_mode='r'), images)):
        assert isinstance(own.z, np.memmap)
        got = own.embed(images[[9,3,5]])
        assert got.dtype == np.float32 and (got == z[[9,3,5]].astype(np.float32)).all()
    own.save(tmp_path/'own.safetensors')
    assert (Encoder.load(tmp_path/'own.safetensors').embed(images) == own.embed(images)).all()

@pytest.mark.parametrize('z, words', [(np.zeros((199, 3)), '199 rows for 200 images'), (np.zeros(200), r'\[200\] float64'), (np.full((200, 2), np.nan), 'in 200 of 200 rows'),
                                      (np.ones((200, 2), np.float16), 'collapsed'), (np.zeros((200, 2), bool), 'bool')])
def test_bad_files(z, words, tmp_path):
    np.save(tmp_path/'z.npy', z)
    with pytest.raises(ValueError, match=words): OwnEmbedding(tmp_path/'z.npy', images)
    with pytest.raises(ValueError, match=words): OwnEmbedding(z, images)

def test_checked_without_a_copy(tmp_path):
    "The check of a mapped file takes a block at a time, however large the file."
    n, d = 100_000, 64
    np.save(tmp_path/'z.npy', rng.normal(size=(n, d)).astype(np.float32))
    mapped = np.load(tmp_path/'z.npy', mmap_mode='r')
    tracemalloc.start()
    z = check_embedding(mapped)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.shares_memory(z, mapped) and peak < mapped.nbytes/5


# encoders that are networks

drawn = ImageSet(rng.integers(0, 256, (150,1,16,16), dtype=np.uint8), rng.integers(0, 5, 150))
learners = pytest.mark.parametrize('made', [ACAI, BiGAN, InfoGAN, DeepCluster, Instance])

def trained(made, images=drawn, **kw):
    more = dict(n_clusters=6, n_filters=4) if made is DeepCluster else {}
    return made(**made.presets['quick'] | dict(n_epochs=3, bs=32, quiet=True) | more | kw).fit(images)

def same_weights(a, b):
    a, b = a.net.state_dict(), b.net.state_dict()
    return a.keys() == b.keys() and all((a[k] == b[k]).all() for k in a)

class Kill(Callback):
    order = 100
    def __init__(self, epoch, it): self.at = epoch, it
    def after_batch(self):
        if self.training and (self.epoch, self.iter) == self.at: raise KeyboardInterrupt

@learners
@pytest.mark.parametrize('at', [(0, 1), (1, 0), (2, 2)], ids=str)
def test_killed_and_resumed(made, at, tmp_path):
    "Killed in the middle of a pass and started again, a training ends at the weights of an unbroken one, to the bit; labels change nothing."
    with pytest.raises(KeyboardInterrupt): trained(made, checkpoint=tmp_path/'c', cbs=Kill(*at))
    assert (tmp_path/'c').exists() == (at[0] > 0)
    assert same_weights(trained(made, checkpoint=tmp_path/'c'), trained(made, ImageSet(drawn.x, drawn.y[::-1])))

@learners
def test_trained_in_a_file(made, tmp_path):
    "A file, and a shipped one in half precision, bring the embedding back; an image alone is embedded as among others."
    enc = trained(made, n_epochs=1)
    z = enc.embed(drawn)
    enc.save(tmp_path/'e'); save_pretrained(enc, 'mine', tmp_path)
    assert (Encoder.load(tmp_path/'e').embed(drawn) == z).all()
    np.testing.assert_allclose(Encoder.pretrained('mine', tmp_path).embed(drawn), z, atol=0.05*np.abs(z).max())
    np.testing.assert_allclose(enc.embed(drawn[:1]), z[:1], atol=1e-3*np.abs(z).max())


@learners
def test_presets(made):
    "Both presets are there, and what they say is what an encoder is made with."
    assert {*made.presets} == {'quick', 'full'}
    for kwargs in made.presets.values(): assert kwargs.items() <= made(**kwargs).config.items()

@learners
def test_in_a_run(made, tmp_path):
    "By its name and a preset, as the commands make it: learnt once, without a checkpoint that stays, and reported on by unseen classes."
    cfg = preset('glyphs', encoder=made.name, encoder_preset='quick', split=(30, 5, 10))
    train, _, test = load_splits(cfg)
    (enc, z), (_, again) = [embed_stage(Run(tmp_path/'run', fit_to(cfg, train)), train.unlabelled()) for _ in range(2)]
    assert type(enc) is made and len(z) == 600 and (z == again).all() and not list(tmp_path.rglob('*checkpoint*'))
    report = embedding_report(enc.embed(test), test, made.name, 5, (1, 5), n_tasks=10)
    assert [o['embedding'] for o in report.rows] == [made.name]*6 and report.facts['images'] == 200

@learners
def test_learner_refuses(made):
    "What no training can be made of, and what a trained one cannot embed."
    same = ImageSet(np.repeat(drawn.x[:1], 150, 0))
    with pytest.raises(ValueError, match='has collapsed|is dead'): trained(made, same, n_epochs=1)
    with pytest.raises(ValueError, match='Call fit first'): made().embed(drawn)
    with pytest.raises(ValueError, match='(at least|at most)'): trained(made, drawn[:1])
    with pytest.raises(ValueError, match=r'learnt from images \(1, 16, 16\), these are \(3, 8, 8\)'): trained(made, n_epochs=1).embed(colour)
    for bad in (dict(n_epochs=0), dict(bs=0), dict(seed=-1), dict(lr=0.), dict(lr=np.nan)):
        with pytest.raises(ValueError, match=next(iter(bad))): trained(made, **bad)


# InfoGAN

@pytest.mark.parametrize('shape', [(3,84,84), (1,28,28), (3,8,12)], ids=str)
def test_infogan_shapes(shape):
    "Colour, and sides of any multiple of four. Fewer batches leave the running statistics behind, and the discriminator answers alike to all noise."
    x = ImageSet(np.random.default_rng(0).integers(0, 256, (40, *shape), dtype=np.uint8))
    enc = InfoGAN(width=2, layer='shared', n_epochs=6, bs=4, lr=1e-2, n_categories=4, n_continuous=1, quiet=True).fit(x)
    assert enc.embed(x).shape == (40, 32) and enc.reconstruct(x).x.shape == x.x.shape
    assert enc.sweep(0, 2).shape == (2, 4, *shape) and enc.sweep(1, 2, 5).shape == (2, 5, *shape)

def test_infogan_without_continuous_codes():
    "A category alone is a code, and all that the sweeps can show."
    x = glyphs()[::40].unlabelled()
    enc = InfoGAN(**InfoGAN.presets['quick'] | dict(n_continuous=0, layer='codes'), quiet=True).fit(x)
    assert enc.embed(x).shape == (len(x), 10)
    with pytest.raises(ValueError, match='code=1: there are the category, code 0, and 0 continuous ones'): enc.sweep(1)

def test_infogan_gradients():
    "One backward pass gives discriminator and Q what their own losses give, and the generator what its own gives."
    torch.manual_seed(0)
    net, x = InfoGANNet((1,8,8), 3, 1, 2, 2).double(), torch.rand(5,1,8,8, dtype=torch.float64)
    net.latents = net.random(np.random.default_rng(0), 5).double()
    codes = net.latents[:,:4]
    def info(q): return core.F.cross_entropy(q[:,:3], codes[:,:3]) + 0.3*core.F.gaussian_nll_loss(q[:,3:4], codes[:,3:], (2*q[:,4:]).exp(), full=True)
    def grads(loss, part): net.zero_grad(); loss.backward(); return [p.grad.clone() for p in part.parameters()]
    def parts(detach): y = net.g(net.latents); return net.d(torch.cat([x, y.detach() if detach else y]))
    bce = core.F.binary_cross_entropy_with_logits
    score, q = parts(True)
    critic = grads(bce(score[:5], torch.ones(5).double()) + bce(score[5:], torch.zeros(5).double()) + info(q[5:]), net.d)
    score, q = parts(False)
    others = grads(bce(score[5:], torch.ones(5).double()) + info(q[5:]), net.g)
    both = grads(infogan_loss(net(x), k=3), net)
    for a,b in zip(critic + others, both, strict=True): torch.testing.assert_close(a, b)


# DeepCluster

class Rows(Callback):
    "What a pass is made of"
    order = 100
    def before_train(self): ds = self.dls.train.dataset; self.of = self.model.clusters[ds.rows], {*ds.rows.tolist()}, {*self.dls.valid.dataset.rows.tolist()}

@pytest.mark.parametrize('k', [2, 6, 40])
def test_clusters_are_seen_equally(k):
    "No held-out image in a pass, and no cluster much more often than another."
    trained(DeepCluster, cbs=(look := Rows()), n_clusters=k, n_epochs=1)
    labels, rows, held = look.of
    counts = labels.bincount()
    assert not rows & held and len(labels) == 135
    assert counts.max() <= -(-135//(counts > 0).sum()) and counts[counts > 0].min() > 0

def test_fewer_images_than_components():
    "Directions in which no training image differs do not enter the embedding."
    mean, matrix = whitening(torch.from_numpy(rng.normal(size=(5, 20))).float(), 16)
    assert (matrix.norm(dim=1) > 0).tolist() == [True]*4 + [False]*12
    assert trained(DeepCluster, drawn[:30], n_filters=16, n_clusters=3).embed(drawn).shape == (150, 16)

@pytest.mark.parametrize('at', [(1, 1), (2, 0), (3, 2)], ids=str)
def test_deepcluster_resumed_between_cuts(at, tmp_path):
    "Clusters that stay for two passes come from the checkpoint, with their classifier, and dropout goes on with the numbers of its batch."
    kw = dict(images=ImageSet(np.random.default_rng(1).integers(0, 256, (150,1,20,20), dtype=np.uint8)), backbone='alexnet', n_filters=6, every=2, n_epochs=4)
    with pytest.raises(KeyboardInterrupt): trained(DeepCluster, checkpoint=tmp_path/'c', cbs=Kill(*at), **kw)
    assert same_weights(trained(DeepCluster, checkpoint=tmp_path/'c', **kw), trained(DeepCluster, **kw))

def test_deepcluster_full():
    "The preset for a GPU: 6 × 6 are left of 64 × 64, as in the authors' network of 224 × 224, and 4,096 features."
    full = {k: v for k,v in DeepCluster.presets['full'].items() if k in ('backbone', 'n_filters', 'size')}
    with torch.device('meta'):
        net = DeepClusterNet((3,84,84), 640, 1, **full).eval()
        assert [tuple(l.weight.shape) for l in net.body if isinstance(l, nn.Linear)] == [(4096, 256*6*6), (4096, 4096)]
        assert net(torch.rand(2,3,84,84)).shape == (2, 640) and net.matrix.shape == (256, 4096)

def test_deepcluster_again():
    "Fitted to other images, k follows their number, if nobody asked for one."
    enc = trained(DeepCluster, n_clusters=None, n_epochs=1)
    assert enc.config['n_clusters'] == 2 and enc.fit(ImageSet(np.concatenate([drawn.x, 255-drawn.x]))).config['n_clusters'] == 5


# what a file brings back, and what it cannot

def test_shipped_without_its_judge(tmp_path):
    "Half of a GAN stays half of one in another file, and is whole after a training of its own."
    enc = BiGAN(n_latent=4, width=8, n_epochs=1, bs=20, quiet=True).fit(images)
    assert len(enc.judge(images[:5])) == 2
    save_pretrained(enc, 'tiny', tmp_path)
    shipped = Encoder.pretrained('tiny', tmp_path)
    shipped.save(tmp_path/'again.safetensors')
    for o in (shipped, Encoder.load(tmp_path/'again.safetensors')):
        with pytest.raises(ValueError, match='without its discriminator'): o.judge(images[:5])
    assert len(shipped.fit(images).judge(images[:5])) == 2

def test_too_few_for_a_gan():
    with pytest.raises(ValueError, match='at least 3'): BiGAN(quiet=True).fit(images[:2])
    with pytest.raises(ValueError, match='bs=1'): BiGAN(bs=1)

def test_picked(tmp_path):
    "A module whose output is picked from is not loaded as another embedding without the function."
    net, pick = nn.Sequential(nn.Conv2d(1, 4, 3)), lambda out: out[:,0]
    enc = ModuleEncoder(net, pick=pick)
    enc.save(tmp_path/'e.safetensors')
    with pytest.raises(ValueError, match='not a function.*no code'): Encoder.load(tmp_path/'e.safetensors', model=net)
    assert (Encoder.load(tmp_path/'e.safetensors', model=net, pick=pick).embed(images) == enc.embed(images)).all()

def test_own_rows_in_a_file(tmp_path):
    "Ids of any text keep their rows, and numbers alone do not pass for the same images."
    z = np.arange(20, dtype=np.float32)[:,None].repeat(2, 1)
    odd = ImageSet(images.x[:20], ids=[f'a\n{i}\udc80' for i in range(20)])
    OwnEmbedding(z, odd).save(tmp_path/'odd.safetensors')
    assert (Encoder.load(tmp_path/'odd.safetensors').embed(odd[7:9]) == z[7:9]).all()
    OwnEmbedding(z, ImageSet(images.x[:20])).save(tmp_path/'own.safetensors')
    own = Encoder.load(tmp_path/'own.safetensors')
    own.save(tmp_path/'again.safetensors')
    for o in (own, Encoder.load(tmp_path/'again.safetensors')):
        assert (o.embed(ImageSet(images.x[:20])[5:]) == z[5:]).all()
        with pytest.raises(ValueError, match='two sets have the same ids'): o.embed(ImageSet(images.x[20:40]))

def test_step_learns_anew():
    "What a step taught itself is of the images it was fitted to last; what came to it taught stays."
    once, again = Whitened(PCA(3)), Whitened(PCA(3))
    assert (again.fit(images[:100]).fit(images[100:]).embed(images) == once.fit(images[100:]).embed(images)).all()
    given = PCA(3).fit(images[:100])
    assert Normalised(given).fit(images[100:]).inner is given and (given.embed(images) == PCA(3).fit(images[:100]).embed(images)).all()

def test_mirrored_views():
    "Channels in another order are a view of the same memory, and good images."
    assert ModuleEncoder(small(3)).embed(ImageSet(colour.x[:,::-1])).shape[0] == len(colour)
