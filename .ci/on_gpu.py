"""What waits for a GPU, in order of value, in calls of a few minutes: correctness, speed, the paper's rows, rounds, encoders.

    CACTUS_DATA=/data python .ci/on_gpu.py --minutes 9 --out gpu-results          # call it again until it says that all is over

Run it in a clone whose package can be imported (installed, or from this folder), with pytest beside it and `$CACTUS_DATA/omniglot` there. Each step is a command of the
project; its output goes to OUT/NAME.log, what it measured to OUT/NAME.json or OUT/reproduce, its seconds and how it ended to OUT/state.json, and run folders to OUT/work. A step
that the time cuts off is gone on with in the next call: the commands resume. One that fails is noted, and the next one is run. A step is done only if the file is there that it
was to write. Rows that need no training are not run: they are the processor's, and stored already.

On a machine that is lent for minutes: set CACTUS_COMMIT where the clone comes without its history, `--pack FILE.tar.gz` keeps all results and checkpoints in one file, written
anew after each step, and `--from FILE.tar.gz` goes on from it on another machine.
"""
import argparse, json, os, shlex, shutil, signal, subprocess, sys, tarfile, time
from collections import namedtuple
from importlib.util import find_spec
from pathlib import Path

root = Path(__file__).resolve().parent.parent
Step = namedtuple('Step', 'line made keep cap', defaults=(None, False, 600))
Step.__doc__ = "A command; the file that it writes, if any; is that kept as OUT/NAME.json? The most seconds that it may take in one call"

rows = ['acai-cactus-protonets', 'acai-cactus-maml', 'oracle-protonets', 'bigan-cactus-protonets', 'oracle-maml', 'bigan-cactus-maml', 'from-scratch']
ablations = ['acai-cactus-maml-P1', 'acai-cactus-maml-hyperplanes', 'bigan-cactus-maml-hyperplanes', 'zca-cactus-maml-P1', 'cactus-maml-random-20way', 'cactus-maml-random-5way']
speed = dict(proto_fit=2, maml_fit=1, maml_step_20way=9, partitions_paper=1, proto_step=9, embed=9, maml_eval=1, maml_step_5way=9, maml_step_head=9, partitions=1, partitions_same=1, task_draw=9) # and how often

def steps(device, out, work):
    "`{name: Step}`; {minutes} in a command is what is left of the call"
    found = {}
    def row(name, seed): found[f'{name}-s{seed}'] = Step(f'cactus_reproduce --row {name} --preset full --seed {seed} --device {device} --minutes {{minutes}} --out {out}/reproduce --work {work}/reproduce', f'{out}/reproduce/{name}.full.s{seed}.json')
    def rounds(method, seed, data='omniglot', more=''):
        run = f'{work}/rounds-{data}-{method}-s{seed}'
        found[f'train-{data}-{method}-s{seed}'] = Step(f'cactus_train --data {data} --preset best --method {method} {more}--seed {seed} --device {device} --out {run}', f'{run}/model.safetensors')
        found[f'rounds-{data}-{method}-s{seed}'] = Step(f'cactus_eval --run {run} --rounds --device {device}', f'{run}/rounds.json', True)
    found['device'] = Step(f'pytest -q -x --durations=5 tests/test_device.py tests/test_transforms.py --device {device} -k "not script"', cap=150)
    for o,n in speed.items(): found[f'speed-{o}'] = Step(f'cactus_bench --device {device} --rows {o} --rounds {n} --out {work}/{o}.json', f'{work}/{o}.json', True, 200)
    for o in rows[:3]: row(f'omniglot-{o}', 0)
    rounds('protonets', 0, more='--n_rounds 8 ')
    for o in rows[3:]: row(f'omniglot-{o}', 0)
    rounds('maml', 0)
    for o in ablations: row(f'omniglot-{o}', 0)
    for seed in (1, 2): rounds('protonets', seed, more='--n_rounds 8 '); rounds('maml', seed)
    for o in ('mnist-acai-cactus-maml', 'mnist-bigan-cactus-maml', 'mnist-oracle-maml', 'mnist-acai-cactus-protonets', 'mnist-oracle-protonets', 'mini-imagenet-oracle-protonets', 'mini-imagenet-oracle-maml',
              'mini-imagenet-deepcluster-cactus-protonets', 'mini-imagenet-deepcluster-cactus-maml', 'mini-imagenet-bigan-cactus-protonets', 'mini-imagenet-bigan-cactus-maml'): row(o, 0)
    rounds('protonets', 0, 'mini-imagenet')
    for o in ('acai', 'bigan'): found[f'embed-{o}'] = Step(f'cactus_embed --encoder {o} --encoder_preset full --data omniglot --report --device {device} --out {work}/embed-{o}', f'{work}/embed-{o}/result.json', True)
    for seed in (1, 2):
        for o in rows: row(f'omniglot-{o}', seed)
    return found

def run_step(step, line, log, seconds):
    "How a command ended: `done`, `unfinished` where the time was over, or `failed`"
    env = os.environ | dict(PYTHONPATH=os.pathsep.join([str(root), os.environ.get('PYTHONPATH', '')]), PYTHONUNBUFFERED='1')
    program, *args = shlex.split(line)
    if program.startswith('cactus_'): program = [sys.executable, '-c', f'import cactus_nb.bench as b, cactus_nb.cli as c, cactus_nb.score.reproduce as r; next(getattr(o, "{program}") for o in (b, r, c) if hasattr(o, "{program}"))()']
    else: program = [sys.executable, '-m', program]
    with open(log, 'a') as f:
        f.write(f'\n$ {line}\n'); f.flush()
        child = subprocess.Popen([*program, *args], cwd=root, env=env, stdout=f, stderr=subprocess.STDOUT, start_new_session=True)
        try: code = child.wait(seconds)
        except subprocess.TimeoutExpired:
            for sig in (signal.SIGTERM, signal.SIGKILL): # with all that it has started
                try: os.killpg(child.pid, sig); child.wait(5)
                except (ProcessLookupError, subprocess.TimeoutExpired): pass
            return 'unfinished'
    if 'Stopped after' in Path(log).read_text().rsplit('$ ', 1)[-1]: return 'unfinished'
    return 'done' if code == 0 and (step.made is None or Path(step.made).exists()) else 'failed'

def merge(out):
    "What `cactus_bench` measured row by row as one file"
    found = [json.loads(p.read_text()) for p in sorted(out.glob('speed-*.json'), key=lambda p: [*speed].index(p.stem[6:]))]
    if found: (out/'speed.json').write_text(json.dumps(found[0] | dict(rows=[r for o in found for r in o['rows']], seconds=round(sum(o['seconds'] for o in found), 1)), indent=1))

def pack(out, file, most=14*2**20):
    "Results, logs and what a training goes on from, in one file; what is large and can be made again stays"
    def few(info): return info if info.isdir() or info.size <= 2**21 or info.name.endswith(('checkpoint.safetensors', 'model.safetensors')) and info.size < most else None
    tmp = Path(f'{file}.tmp')
    with tarfile.open(tmp, 'w:gz', compresslevel=1) as t: t.add(out, '.', filter=few)
    tmp.replace(file)

def unpack(t, out): t.extractall(out, **(dict(filter='data') if hasattr(tarfile, 'data_filter') else {})) # the first 3.10s and 3.11s have no filter

def lacking(device):
    "What this machine lacks, in words"
    found = [f'the package {o}' for o in ('fastai', 'fastcore', 'safetensors', 'sklearn', 'pytest') if not find_spec(o)]
    if not (Path(os.environ.get('CACTUS_DATA', '.'))/'omniglot').is_dir(): found.append('omniglot in $CACTUS_DATA')
    if device != 'cpu' and not found:
        import torch
        if not torch.cuda.is_available(): found.append('a GPU that torch sees')
    return found

def main(found, out, minutes, spare=10, packed=None):
    "Run what is not over yet; `spare` seconds are left at the end. The exit status is 0 when all is over, 3 when there is more to do"
    out, until = Path(out), time.time() + 60*minutes - spare
    (out/'work').mkdir(parents=True, exist_ok=True)
    file = out/'state.json'
    state = json.loads(file.read_text()) if file.exists() else {}
    for name,step in found.items():
        left = until - time.time()
        if state.get(name, {}).get('state') in ('done', 'failed'): continue
        if left < 5: break
        start = time.time()
        how = run_step(step, step.line.format(minutes=round(max(min(left, step.cap) - 5, 5)/60, 2)), out/f'{name}.log', min(left, step.cap))
        tries = state.get(name, {}).get('tries', 0) + 1
        if how == 'unfinished' and left > step.cap and tries > 3: how = 'failed' # it had its time, again and again
        if how == 'done' and step.keep: shutil.copy(step.made, out/f'{name}.json')
        state[name] = dict(state=how, seconds=round(state.get(name, {}).get('seconds', 0) + time.time() - start, 1), tries=tries, line=step.line)
        file.write_text(json.dumps(state, indent=1))
        if name.startswith('speed-'): merge(out)
        if packed: pack(out, packed)
        print(f"{name}: {how}, {state[name]['seconds']:.0f} s", flush=True)
    rest = [o for o in found if state.get(o, {}).get('state') not in ('done', 'failed')]
    print(f"{len(found) - len(rest)} of {len(found)} steps are over" + (f", {sum(o['state'] == 'failed' for o in state.values())} of them failed" if any(o['state'] == 'failed' for o in state.values()) else '') + (f"; next: {rest[0]}" if rest else ''))
    return 3 if rest else 0

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--minutes', type=float, default=9, help='for this call')
    p.add_argument('--device', default='cuda')
    p.add_argument('--out', default='gpu-results', help='folder of what is measured, and of the state')
    p.add_argument('--pack', default=None, help='a .tar.gz to keep all of it in, written after each step')
    p.add_argument('--from', dest='before', default=None, help='such a file, to go on from')
    p.add_argument('--only', default=None, help='names of steps, with commas between')
    p.add_argument('--again', default=None, help='steps to run although they are over, with commas between')
    p.add_argument('--list', action='store_true', help='show the steps and their commands')
    a = p.parse_args()
    out = Path(a.out).resolve()
    found = steps(a.device, out, out/'work')
    for o in [*(a.only or "").split(","), *(a.again or "").split(",")]:
        if o and o not in found: p.error(f'there is no step {o!r}; choose of {", ".join(found)}')
    if a.list: print('\n'.join(f'{k}: {o.line}' for k,o in found.items())); sys.exit()
    if missing := lacking(a.device): p.error(f"this machine lacks {', '.join(missing)}")
    if a.before and not (out/'state.json').exists():
        with tarfile.open(a.before) as t: unpack(t, out)
    if a.only: found = {k: v for k,v in found.items() if k in a.only.split(',')}
    if a.again and (out/'state.json').exists():
        state = json.loads((out/'state.json').read_text())
        (out/'state.json').write_text(json.dumps({k: v for k,v in state.items() if k not in a.again.split(',')}, indent=1))
    sys.exit(main(found, out, a.minutes, packed=a.pack and Path(a.pack).resolve()))
