"""200 random changes of each widget on glyphs, with its controls: seconds to each picture, and the memory that is held.

    python tests/browser/measure.py [--n 200] [--seed 0]
"""
import gc, sys, time
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from test_widgets import check, press, settle
from cactus_nb.all import CompareEmbeddings, InnerSteps, ModuleEncoder, PCA, TaskExplorer, TeachIt, conv4, conv4_classifier, glyphs, kmeans_partitions, maml_learner, proto_learner, task_dls

def rss(): return int(next(o for o in Path('/proc/self/status').read_text().splitlines() if o.startswith('VmRSS')).split()[1])/1024 # MB

def widgets():
    "Those of the tutorial; the learners are not trained, which takes the same time"
    train, test, _ = glyphs()[::2].split_classes(200, 100, 0, seed=0)
    pca = PCA(32).fit(train)
    parts = kmeans_partitions(pca.embed(train), n_clusters=100, n_partitions=1, seed=0)
    dls = task_dls(train.unlabelled(), parts, n_way=5, k_shot=1, n_query=5, n_tasks=2, n_valid=2)
    learn, maml = proto_learner(dls, conv4(n_filters=32, seed=0)), maml_learner(dls, conv4_classifier(5, n_filters=16, seed=0))
    encoders = {'PCA, 32 numbers': pca, 'PCA, 2 numbers': PCA(2).fit(train), 'learnt': ModuleEncoder(learn.model)}
    return [lambda: TaskExplorer(train, encoders), lambda: InnerSteps(maml, test), lambda: TeachIt(learn, test), lambda: CompareEmbeddings(test, encoders)]

def measure(make, n, seed):
    panel, rng, wall, cpu, held = make(), np.random.default_rng(seed), [], [], []
    panel.widget()
    for i in range(n):
        if i in (n//4, n//2, n-1): gc.collect(); held.append(rss())
        start = time.perf_counter(), time.process_time()
        press(panel, rng)
        wall.append(time.perf_counter() - start[0]); cpu.append(time.process_time() - start[1])
        check(panel)
    settle(panel, make)
    assert not plt.get_fignums()
    say = lambda o: f'{np.median(o):.2f} {np.quantile(o, 0.95):.2f} {max(o):.2f}'
    print(f'{type(panel).__name__:18} {n} changes; seconds, median 95 % slowest: wall {say(wall)}, processor {say(cpu)}; memory after a quarter, half and all {held[0]:.0f}, {held[1]:.0f}, {held[2]:.0f} MB', flush=True)

if __name__ == '__main__':
    p = ArgumentParser(); p.add_argument('--n', type=int, default=200); p.add_argument('--seed', type=int, default=0)
    args = p.parse_args()
    for make in widgets(): measure(make, args.n, args.seed)
