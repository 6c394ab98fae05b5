"Every way to make partitions: what they hold, what tasks come of them, and what is refused."
import warnings
import numpy as np, pytest
from cactus_nb.data.core import ImageSet
from cactus_nb.tasks.partition import *
from cactus_nb.tasks.partition import _draw_planes, _zones
from cactus_nb.tasks.sample import TaskSampler, hold_out, task_dls

n, d = 1500, 12
z = np.random.default_rng(0).normal(size=(n, d)).astype(np.float32)

MAKE = dict(kmeans     =lambda z=z, **kw: kmeans_partitions(z, **dict(n_clusters=30, n_partitions=4) | kw),
            unscaled   =lambda z=z, **kw: kmeans_partitions(z, **dict(n_clusters=30, n_partitions=4, scaled=False) | kw),
            hyperplanes=lambda z=z, **kw: hyperplane_partitions(z, **dict(n_way=10, n_partitions=4, n_splits=100) | kw),
            random     =lambda z=z, **kw: random_partitions(len(z), **dict(n_clusters=30, n_partitions=4) | kw))
OF_Z = [k for k in MAKE if k != 'random']
kinds = pytest.mark.parametrize('kind', MAKE)
of_z  = pytest.mark.parametrize('kind', OF_Z)


@kinds
def test_partitions(kind, tmp_path):
    "Shape, type, sizes and seed of each kind; fewer are the beginning of more; a file brings all of it back."
    p = MAKE[kind](seed=3)
    assert p.labels.shape == (4, n) and p.labels.dtype == np.int32 and len(p.notes) == 4
    assert all(p.sizes(i).min() >= 6 for i in range(4))
    assert (MAKE[kind](seed=3, n_partitions=2).labels == p.labels[:2]).all()
    assert (MAKE[kind](seed=4).labels != p.labels).any()
    assert len({l.tobytes() for l in p.labels}) == 4, 'partitions repeat'
    p.save(tmp_path/'p.npz')
    again = Partitions.load(tmp_path/'p.npz')
    assert again.kind == p.kind == kind.replace('unscaled', 'kmeans') and again.notes == p.notes and (again.labels == p.labels).all()

@kinds
def test_tasks(kind):
    "The classes of a task are different clusters of one partition, and batches come with and without labels to validate on."
    p = MAKE[kind]()
    for task in TaskSampler(p, n_way=5, k_shot=1, n_query=5).sample(50).numpy():
        c = p.labels[:,task]
        same = ((c == c[:,:,:1]).all((1,2)) & (c >= 0).all((1,2)))
        assert any(s and len(set(l[:,0])) == 5 for s,l in zip(same, c)) and len(np.unique(task)) == 30
    images = ImageSet(np.zeros((n,1,4,4), np.uint8), np.arange(n) % 20)
    for valid in (None, images):
        dls = task_dls(images, p, valid, n_way=5, k_shot=1, n_query=3, bs=2, n_tasks=4, n_valid=4)
        assert dls.one_batch()[2].shape == (2, 15, 1, 4, 4)

@kinds
@pytest.mark.parametrize('bad', [0, -1, 1.5, None])
def test_counts(kind, bad):
    for k in ('n_partitions', 'min_size'):
        with pytest.raises(ValueError, match=f'{k}={bad}: give a whole number'): MAKE[kind](**{k: bad})

@of_z
def test_bad_embedding(kind):
    for bad, words in [(np.where(np.arange(n)[:,None] == 7, np.nan, z), 'NaN or infinity in 1 of 1,500 rows, the first is row 7'), (z[:,0], r'\[n, d\]'), (np.ones_like(z), 'collapsed'), (z[:1], 'nothing to cluster')]:
        with pytest.raises(ValueError, match=words): MAKE[kind](bad)

@of_z
def test_memory_map(kind, tmp_path):
    "A mapped file gives what the array gives, and half precision is taken."
    for dtype in (np.float32, np.float16):
        np.save(tmp_path/'z.npy', z.astype(dtype))
        mapped = np.load(tmp_path/'z.npy', mmap_mode='r')
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            assert (MAKE[kind](mapped).labels == MAKE[kind](np.array(mapped)).labels).all()

@pytest.mark.parametrize('kind', ['kmeans', 'random'])
def test_too_many_clusters(kind):
    for k in (1, n+1):
        with pytest.raises(ValueError, match=f'n_clusters={k} over 1,500 images'): MAKE[kind](n_clusters=k)
    with pytest.raises(ValueError, match='n_way=31 needs 31 clusters'): MAKE[kind](n_way=31)

def test_unscaled():
    "Without scales the first is the same and the others are other starts in the same space."
    a, b = MAKE['kmeans'](), MAKE['unscaled']()
    assert (a.labels[0] == b.labels[0]).all() and a.notes[0] == {k: v for k,v in b.notes[0].items() if k != 'scaled'}
    inertia = [o['inertia'] for o in b.notes]
    assert len(set(inertia)) > 1 and max(inertia) < 1.05*min(inertia)


# hyperplanes

def test_zones_by_hand():
    "As the official code does it: zones are intersections of sides, those of min_size images are kept, at least n_way of them."
    p = MAKE['hyperplanes'](margin=0.1)
    sides, _ = _draw_planes(z, 100, 0, 0.1, 0.8, 60, 1000)
    assert ((sides == 0).sum(1) >= 60).all() and ((sides == 1).sum(1) >= 60).all()
    for labels, note in zip(p.labels, p.notes):
        assert len(set(note['planes'])) == 4 # ⌈log2 10⌉
        chosen, found = sides[note['planes']], set()
        for digits in np.ndindex(2, 2, 2, 2):
            zone = np.flatnonzero((chosen == np.array(digits)[:,None]).all(0))
            if len(zone) >= 6: found.add(tuple(zone))
        assert found == {tuple(np.flatnonzero(labels == c)) for c in set(labels) - {-1}} and len(found) == note['usable'] >= 10

@pytest.mark.parametrize('n_way, n_planes', [(2,1), (3,2), (4,2), (5,3), (8,3), (16,4), (17,5)])
def test_planes_of_a_partition(n_way, n_planes):
    assert len(MAKE['hyperplanes'](n_way=n_way, n_partitions=1).notes[0]['planes']) == n_planes

def test_distance_to_the_plane():
    "Normals have length 1, so the margin is a distance; `spread=0` puts planes through the origin."
    sides, _ = _draw_planes(z, 50, 0, 0., 0, 60, 1000)
    assert (np.where(sides == 1, 1, 0).mean(1) > 0.4).all()
    near, _ = _draw_planes(z, 50, 0, 0.5, 0, 60, 1000)
    assert abs((near < 0).mean() - 0.383) < 0.02 # P(|N(0,1)| < 0.5)

def test_zone_numbers():
    assert _zones(np.zeros((3, 4), np.int8)).tolist() == [0]*4
    assert _zones(np.ones((5, 1), np.int8)).tolist() == [31]

@pytest.mark.parametrize('kw, words', [
    (dict(margin=-0.1), 'margin=-0.1'), (dict(margin=float('nan')), 'margin=nan'), (dict(margin=float('inf')), 'margin=inf'),
    (dict(margin=50.), r'Of \d+ random planes 0 leave 60 images .* Lower margin'), (dict(n_way=1), 'n_way=1'), (dict(n_way=2.5), 'n_way=2.5'),
    (dict(n_way=251), '1,500 images are too few'), (dict(min_size=76), '1,500 images are too few'), (dict(n_way=200), 'n_way=200 needs 200 zones of at least 6 images; the best of'),
    (dict(n_splits=3), 'n_way=10 needs 4 planes'), (dict(n_splits=0), 'n_splits=0')])
def test_no_planes(kw, words):
    "What cannot be is refused in one sentence and soon: no loop is without a bound."
    with pytest.raises(ValueError, match=words): MAKE['hyperplanes'](**dict(max_redraws=30) | kw)

def test_far_from_the_origin():
    "The official box is about the origin; the data's own range is not."
    with pytest.raises(ValueError, match='set spread=None'): MAKE['hyperplanes'](z + 100, max_redraws=20)
    assert len(MAKE['hyperplanes'](z + 100, spread=None)) == 4


# validation without labels

def test_hold_out_of_few_clusters():
    "Ten clusters and ten-way tasks, as for MNIST: some images of each are held out, and none is trained on."
    p = MAKE['kmeans'](n_clusters=10, n_partitions=3)
    train, valid = hold_out(p, 0.1, n_way=10, need=6)
    assert not ((train.labels >= 0).any(0) & (valid.labels >= 0).any(0)).any()
    assert len(valid.sizes(0)) == 10 and valid.sizes(0).min() >= 6 and train.sizes(0).min() >= 6
    assert abs(valid.sizes(0).sum() - n/10) < 20

def test_partitions_left_out():
    "A partition that cannot lose the held-out images is left out with a warning; where none can, that is refused."
    small = np.where(np.arange(n) < 30, np.arange(n) % 5, -1)
    p = Partitions(np.stack([np.arange(n) % 5, small]))
    with pytest.warns(UserWarning, match='1 of 2 partitions are left out'): train, _ = hold_out(p, 0.5, n_way=5, need=6)
    assert len(train) == 1
    with pytest.raises(ValueError, match='5 of its clusters have 6 images and 0 have 12'): hold_out(Partitions(small), 0.1, n_way=5, need=6)
