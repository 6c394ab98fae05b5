"""What waits for a GPU, in order of value, in calls of a few minutes: correctness, speed, encoders, the paper's rows, rounds.

    CACTUS_DATA=/data python .ci/on_gpu.py --minutes 9 --out gpu-results          # call it again until it says that all is done

Run it in a checkout with the package installed and pytest beside it. Each step is a command of the project; its output goes to OUT/NAME.log, what it measured to
OUT/NAME.json or OUT/reproduce, its seconds and how it ended to OUT/state.json, and run folders to OUT/work. A step that the time cuts off is gone on with in the next
call: the commands resume. One that fails is noted, and the next one is run.
"""
import argparse, json, os, shutil, subprocess, sys, time
from pathlib import Path

root = Path(__file__).resolve().parent.parent

def steps(device, out, work):
    "`{name: (command, file that is kept as OUT/NAME.json or None)}`; {minutes} is what is left of the call"
    found, embed = {}, '--data omniglot --report --device'
    def step(name, line, keep=None): found[name] = (line, keep)
    step('device',  f'pytest -q tests/test_device.py tests/test_transforms.py --device {device}')
    step('speed',   f'cactus_bench --device {device} --out {out}/speed.json')
    step('tests',   f'pytest -q -n 8 tests --device {device}')
    for o in ('acai', 'bigan'): step(f'embed-{o}', f'cactus_embed --encoder {o} --encoder_preset full {embed} {device} --out {work}/embed-{o}', f'{work}/embed-{o}/result.json')
    rows = f'--preset full --device {device} --minutes {{minutes}} --out {out}/reproduce --work {work}/reproduce'
    for seed in (0, 1, 2): step(f'omniglot-s{seed}', f'cactus_reproduce --table omniglot --seed {seed} {rows}')
    step('ablations', f'cactus_reproduce --table ablations {rows}')
    for seed in (0, 1, 2):
        for method, more in (('protonets', '--n_rounds 8'), ('maml', '')):
            run = f'{work}/rounds-{method}-s{seed}'
            step(f'train-{method}-s{seed}', f'cactus_train --data omniglot --preset best --method {method} {more} --seed {seed} --device {device} --out {run}')
            step(f'rounds-{method}-s{seed}', f'cactus_eval --run {run} --rounds --device {device}', f'{run}/rounds.json')
    for table in ('mnist', 'mini-imagenet'): step(table, f'cactus_reproduce --table {table} {rows}')
    step('train-mini-imagenet', f'cactus_train --data mini-imagenet --preset best --device {device} --out {work}/rounds-mini')
    step('rounds-mini-imagenet', f'cactus_eval --run {work}/rounds-mini --rounds --device {device}', f'{work}/rounds-mini/rounds.json')
    return found

def run_step(line, log, seconds):
    "How a command ended: `done`, `unfinished` where the time was over, or `failed`"
    env = os.environ | dict(PYTHONPATH=os.pathsep.join([str(root), os.environ.get('PYTHONPATH', '')]))
    program, *args = line.split()
    if program.startswith('cactus_'): program = [sys.executable, '-c', f'import cactus_nb.bench as b, cactus_nb.cli as c, cactus_nb.score.reproduce as r; next(getattr(o, "{program}") for o in (b, r, c) if hasattr(o, "{program}"))()']
    else: program = [sys.executable, '-m', program]
    with open(log, 'a') as f:
        f.write(f'\n$ {line}\n'); f.flush()
        child = subprocess.Popen([*program, *args], cwd=root, env=env, stdout=f, stderr=subprocess.STDOUT)
        try: return 'done' if child.wait(seconds) == 0 and 'Stopped after' not in Path(log).read_text().rsplit('$ ', 1)[-1] else 'failed' if child.returncode else 'unfinished'
        except subprocess.TimeoutExpired:
            child.terminate()
            try: child.wait(5)
            except subprocess.TimeoutExpired: child.kill()
            return 'unfinished'

def main(found, out, minutes, spare=10):
    "Run what is not done yet; `spare` seconds are left at the end. The exit status is 0 when all is done, 3 when there is more to do"
    out, until = Path(out), time.time() + 60*minutes - spare
    out.mkdir(parents=True, exist_ok=True)
    file = out/'state.json'
    state = json.loads(file.read_text()) if file.exists() else {}
    for name,(line,keep) in found.items():
        left = until - time.time()
        if state.get(name, {}).get('state') in ('done', 'failed'): continue
        if left < 5: break
        start = time.time()
        how = run_step(line.format(minutes=round(max(left - 5, 5)/60, 2)), out/f'{name}.log', left)
        if how == 'done' and keep: shutil.copy(keep, out/f'{name}.json')
        state[name] = dict(state=how, seconds=round(state.get(name, {}).get('seconds', 0) + time.time() - start, 1), line=line)
        file.write_text(json.dumps(state, indent=1))
        print(f"{name}: {how}, {state[name]['seconds']:.0f} s", flush=True)
    rest = [o for o in found if state.get(o, {}).get('state') not in ('done', 'failed')]
    print(f"{len(found) - len(rest)} of {len(found)} steps are over" + (f", {sum(o['state'] == 'failed' for o in state.values())} of them failed" if any(o['state'] == 'failed' for o in state.values()) else '') + (f"; next: {rest[0]}" if rest else ''))
    return 3 if rest else 0

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--minutes', type=float, default=9, help='for this call')
    p.add_argument('--device', default='cuda')
    p.add_argument('--out', default='gpu-results', help='folder of what is measured, and of the state')
    p.add_argument('--only', default=None, help='names of steps, with commas between')
    p.add_argument('--again', default=None, help='steps to run although they are over, with commas between')
    p.add_argument('--list', action='store_true', help='show the steps and their commands')
    a = p.parse_args()
    out = Path(a.out).resolve()
    found = steps(a.device, out, out/'work')
    for o in [*(a.only or "").split(","), *(a.again or "").split(",")]:
        if o and o not in found: p.error(f'there is no step {o!r}; choose of {", ".join(found)}')
    if a.only: found = {k: v for k,v in found.items() if k in a.only.split(',')}
    if a.again and (out/'state.json').exists():
        state = json.loads((out/'state.json').read_text())
        (out/'state.json').write_text(json.dumps({k: v for k,v in state.items() if k not in a.again.split(',')}, indent=1))
    if a.list: print('\n'.join(f'{k}: {line}' for k,(line,_) in found.items()))
    else: sys.exit(main(found, out, a.minutes))
