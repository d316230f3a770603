"""How what a training made is loaded, served and converted: the card's last sections.

The command lines follow vLLM's and llama.cpp's documentation and source of autumn 2026.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from avomni_lib.training.backbones import backbone

SERVED_NAME = "avomni"
# vLLM's `--max-lora-rank` takes these values alone.
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
GGUF_TYPES = {"bfloat16": "bf16", "float16": "f16"}


def commands(
    record: Mapping[str, Any],
    kind: str = "adapter",
    folder: str | None = None,
    base: str | None = None,
) -> dict[str, list[str]]:
    """Command lines for `vllm` and `llama.cpp`.

    Args:
        record: `adapter.record_of`; a merged model's names its `dtype` too.
        kind: "adapter" or "merged".
        folder: Where it lies; a placeholder if None.
        base: Where the base model lies, if not where its name says.
    """
    folder = shlex.quote(folder or f"PATH/TO/{kind}")
    base = shlex.quote(base or base_place(record["base_model"]))
    length = f"--max-model-len {record['model']['max_seq_length']}"
    if kind == "merged":
        served = f"{folder} --served-model-name {SERVED_NAME} --dtype {record['dtype']} {length}"
        convert = f"python convert_hf_to_gguf.py {folder} --outtype {GGUF_TYPES[record['dtype']]}"
        gguf = [
            f"{convert} --outfile {SERVED_NAME}.gguf",
            f"{convert} --outfile mmproj-{SERVED_NAME}.gguf --mmproj",
        ]
    else:
        rank = record["model"]["lora_rank"]
        room = next((size for size in VLLM_RANKS if size >= rank), rank)
        adapter = f"--enable-lora --lora-modules {SERVED_NAME}={folder} --max-lora-rank {room}"
        served = f"{base} {adapter} {length}"
        # Its converter refuses the config of a 4-bit base.
        gguf = [
            f"python convert_lora_to_gguf.py {folder} --base PATH/TO/merged --outtype f16 "
            f"--outfile {SERVED_NAME}-lora.gguf"
        ]
    # Left to itself vLLM takes how to sample from the base model's generation_config.json.
    return {"vllm": [f"vllm serve {served} --generation-config vllm"], "llama.cpp": gguf}


def loading(record: Mapping[str, Any], kind: str) -> str:
    """The section that loads it by plain transformers and PEFT."""
    lines = _merged_lines(record) if kind == "merged" else _adapter_lines(record)
    how = "transformers" if kind == "merged" else "PEFT"
    return f"## Load it\n\nBy plain {how}, in this folder:\n\n{block(lines, 'python')}"


def serving(record: Mapping[str, Any], kind: str) -> str:
    """The section about vLLM."""
    if kind == "merged":
        said = "config.json is in transformers 5's words; a server with transformers 4 misreads it."
    else:
        said = (
            "The adapter was trained over the base model in "
            f"{'4' if _in_4_bit(record) else '16'} bit; over weights of another precision its "
            "answers differ a little. Where vLLM does not load the base so, serve a merged model: "
            "`python -m avomni_lib export`."
        )
    request = {
        "model": SERVED_NAME,
        "temperature": 0,
        "messages": [
            {
                "role": "user",
                "content": [
                    {
                        "type": "video_url",
                        "video_url": {"url": "data:video/jpeg;base64,FRAME_1,FRAME_2,…"},
                    },
                    {"type": "text", "text": record["question"]},
                ],
            }
        ],
        # Without num_frames it keeps the first 32.
        "media_io_kwargs": {"video": {"fps": record["sample_hz"], "num_frames": -1}},
        # A processor shrinks what it finds large: a window as a whole, newer ones each frame too.
        "mm_processor_kwargs": {"do_sample_frames": False, "do_resize": False},
    }
    asked = json.dumps(request, indent=1, ensure_ascii=False)
    return (
        "## Serve it by vLLM\n\nThis was not run by what wrote this card.\n\n"
        f"{block(commands(record, kind)['vllm'], 'bash')}\n\n{said} Ask with the video before the "
        "question and temperature 0; the frames are JPEG files in base64, one after another, which "
        f"takes a vLLM of April 2026 or later:\n\n{block([asked], 'json')}"
    )


def conversion(record: Mapping[str, Any], kind: str) -> str:
    """The section about llama.cpp."""
    if kind == "merged":
        said = "The second line makes the vision part."
        if record["base_model"] == "tiny":
            said += " llama.cpp does not know the tiny base's tokenizer and refuses the first."
    else:
        said = (
            "`--base` is a folder with the base model's config.json, not in 4 bit: the merged "
            "model's will do."
        )
    return (
        "## Convert it to GGUF\n\nIn a checkout of llama.cpp; this was not run by what wrote this "
        "card. Whether llama.cpp words a video as above was not tried: compare its answers.\n\n"
        f"{block(commands(record, kind)['llama.cpp'], 'bash')}\n\n{said}"
    )


def block(lines: Sequence[str], language: str = "") -> str:
    """Lines as a fenced block of Markdown."""
    return "\n".join([f"```{language}", *lines, "```"])


def base_place(name: str) -> str:
    """Where a base model lies, as any machine may name it: the package's own by its folder."""
    return "avomni_world/tiny_base/weights" if name == "tiny" else name


def _in_4_bit(record: Mapping[str, Any]) -> bool:
    return record["choices"].get("quantisation") in ("nf4", "stored")


def _merged_lines(record: Mapping[str, Any]) -> list[str]:
    return [
        "import torch",
        "from transformers import AutoModelForImageTextToText, AutoTokenizer",
        "",
        f'model = AutoModelForImageTextToText.from_pretrained(".", dtype=torch.{record["dtype"]})',
        'tokenizer = AutoTokenizer.from_pretrained(".")',
    ]


def _adapter_lines(record: Mapping[str, Any]) -> list[str]:
    how = record["choices"]
    dtype = how.get("dtype", "bfloat16")
    quantised = how.get("quantisation") == "nf4"
    names = ["AutoModelForImageTextToText", "AutoTokenizer"]
    names += ["BitsAndBytesConfig"] if quantised else []
    tiny = record["base_model"] == "tiny"
    place = 'files("avomni_world") / "tiny_base" / "weights"'
    options = [f"dtype=torch.{dtype},", f'device_map={{"": "{how.get("device", "cuda")}"}},']
    if quantised:
        skipped = list(backbone(record["model"]["backbone"]).skip_modules)
        options += [
            "quantization_config=BitsAndBytesConfig(",
            "    load_in_4bit=True,",
            '    bnb_4bit_quant_type="nf4",',
            "    bnb_4bit_use_double_quant=True,",
            f"    bnb_4bit_compute_dtype=torch.{dtype},",
            f"    llm_int8_skip_modules={json.dumps(skipped)},",
            "),",
        ]
    return [
        *(["from importlib.resources import files", ""] if tiny else []),
        "import torch",
        "from peft import PeftModel",
        f"from transformers import {', '.join(names)}",
        "",
        f"base = {f'str({place})' if tiny else json.dumps(record['base_model'])}",
        "model = AutoModelForImageTextToText.from_pretrained(",
        "    base,",
        *(f"    {option}" for option in options),
        ")",
        'model = PeftModel.from_pretrained(model, ".").eval()',
        "tokenizer = AutoTokenizer.from_pretrained(base)",
    ]
