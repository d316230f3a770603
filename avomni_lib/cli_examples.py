"""Examples for the `--help` of each command."""

EXIT_CODES = """exit codes: 0 done, 1 an error (the message says how to fix it), 2 wrong use,
130 stopped by Ctrl-C"""
EXAMPLES = {
    "run": """
  python -m avomni_lib run params/demo.yaml                 every stage that is not done
  python -m avomni_lib run params/demo.yaml --from 05_train --set training.num_epochs=4
  python -m avomni_lib run params/demo.yaml --only 01 02    these stages alone
  python -m avomni_lib run params/demo.yaml --dry-run       what would run, and why
  python -m avomni_lib run params/mi300x.yaml --limit 1     one chunk, as a trial
  python -m avomni_lib run params/mi300x.yaml --shard 3/16  a share of 03_etl, for a Slurm array
  python -m avomni_lib run params/mi300x.yaml own.yaml      several files, later ones win""",
    "status": """
  python -m avomni_lib status params/demo.yaml              one row per stage
  python -m avomni_lib status params/demo.yaml --json       the same for a script""",
    "plan": """
  python -m avomni_lib plan params/mi300x.yaml              bytes, windows, steps, warnings
  python -m avomni_lib plan params/mi300x.yaml --set run.price_per_hour=2.5""",
    "doctor": """
  python -m avomni_lib doctor params/mi300x.yaml            does this machine suit this run
  python -m avomni_lib doctor                               the machine alone""",
    "verify": """
  python -m avomni_lib verify outputs/demo/cache            needs no params file""",
    "compare": """
  python -m avomni_lib compare outputs/a outputs/b          every figure, and which is better""",
    "stop": """
  python -m avomni_lib stop params/mi300x.yaml              `run` goes on from there""",
    "predict": """
  python -m avomni_lib predict params/demo.yaml             the first window of the score
  python -m avomni_lib predict params/demo.yaml --window 7 --base
  python -m avomni_lib predict params/demo.yaml --clip CLIP_ID --at 5 --out answer.png
  python -m avomni_lib predict params/demo.yaml --folder drive/ --json
  python -m avomni_lib predict params/mi300x.yaml --adapter owner/name@COMMIT --clip CLIP_ID""",
    "live": """
  python -m avomni_lib live params/demo.yaml                a held-out clip, played as if live
  python -m avomni_lib live params/demo.yaml --set live.seconds=null
  python -m avomni_lib live params/mi300x.yaml own_cameras.yaml --json""",
    "serve": """
  python -m avomni_lib serve params/demo_future.yaml --alpasim 6789
  python -m avomni_lib serve params/mi300x.yaml --alpasim 6789 --warm-up 7.6 --host 0.0.0.0""",
    "drive": """
  python -m avomni_lib drive params/demo_drive.yaml         scores of policies in a simulator
  python -m avomni_lib drive params/demo_drive.yaml --set driving.traffic=replay --json""",
    "export": """
  python -m avomni_lib export params/demo.yaml              into outputs/RUN/merged
  python -m avomni_lib export params/demo.yaml --out outputs/model --dtype float16
  python -m avomni_lib export params/demo.yaml --lerobot    the clips, into outputs/RUN/lerobot""",
}
