"Labels never reach what is learnt without them: the whole path, to the bit."
import numpy as np, pytest, torch
from cactus_nb.backbones import conv4, conv4_classifier
from cactus_nb.data.core import ImageSet
from cactus_nb.data.sets import glyphs
from cactus_nb.encoders.core import PCA, Autoencoder
from cactus_nb.meta.learner import maml_learner, proto_learner
from cactus_nb.tasks.partition import kmeans_partitions
from cactus_nb.tasks.sample import task_dls


LEARNERS = dict(protonets=lambda dls: proto_learner(dls, conv4(n_filters=8, seed=0)), maml=lambda dls: maml_learner(dls, conv4_classifier(5, n_filters=8, seed=0), test_steps=2))


def path(images, encoder, learner):
    "Partitions and weights of a short run"
    z = encoder().fit(images).embed(images)
    parts = kmeans_partitions(z, n_clusters=60, n_partitions=3, seed=0)
    dls = task_dls(images, parts, n_way=5, k_shot=1, n_query=5, bs=2, n_tasks=20, n_valid=5)
    learn = LEARNERS[learner](dls)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(2)
    return parts.labels, learn.model.state_dict()


@pytest.mark.parametrize('encoder', [lambda: PCA(16), lambda: Autoencoder(n_latent=8, n_filters=4, n_epochs=1)], ids=['pca', 'autoencoder'])
@pytest.mark.parametrize('learner', LEARNERS)
def test_labels_change_nothing(encoder, learner):
    "Permuted labels, and none at all, give the same partitions and weights."
    images = glyphs()[::10]
    others = [ImageSet(images.x, np.random.default_rng(0).permutation(images.y), ids=images.ids), images.unlabelled()]
    labels, weights = path(images, encoder, learner)
    for o in others:
        l, w = path(o, encoder, learner)
        np.testing.assert_array_equal(l, labels)
        for k in weights: assert torch.equal(w[k], weights[k]), k


def test_unlabelled_holds_no_label():
    "Nothing on the unlabelled set leads back to the labels but the ids, which are for people."
    u = glyphs()[:40].unlabelled()
    assert u.y is None and not u.classes and not u.n_classes
