"""The part of ``vbench_parity`` that runs in the package's environment: weights, and what is behind a vote.

    python -m benchmarks.vbench_parity_upstream make NETWORK CACHE
    python -m benchmarks.vbench_parity_upstream behind DIMENSION JOB.json RESULT.json

``make`` draws a network of the published size and saves it where the package looks for it, in the form
in which it is published. ``behind`` lets the package judge files and notes the numbers that its yes or no
is made of; nothing of the package is changed.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.vbench_networks import Attributes, build, prepare_imports

BERT_WORDS = 30522
SAID = ("red", "blue", "car", "dog")  # words that GRiT's random networks can say or be asked for
# GRiT's two tasks begin with tokens of their own: what it calls a thing, and how it describes it.
CAPTIONS = {"[CLS]": "car", "red": "car", "car": "[SEP]"}
DESCRIBES = 104  # the number that GRiT has for the second, whatever the vocabulary
# DINO's repository is in no package: timm's ViT with DINO's rule for positions stands for it.
HUB = """
import timm, torch
from torch.nn import functional


class Vit(timm.models.vision_transformer.VisionTransformer):
    def forward(self, images):
        patches = self.patch_embed.proj(images)
        rows, columns = patches.shape[-2:]
        x = torch.cat([self.cls_token.repeat(len(images), 1, 1), patches.flatten(2).mT], 1)
        table = self.pos_embed
        if rows * columns != table.shape[1] - 1 or images.shape[-1] != images.shape[-2]:
            grid = table[:, 1:].reshape(1, 14, 14, -1).permute(0, 3, 1, 2)
            factors = ((rows + 0.1) / 14, (columns + 0.1) / 14)
            grid = functional.interpolate(grid, scale_factor=factors, mode="bicubic")
            table = torch.cat([table[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], 1)
        return self.norm(self.blocks(x + table))[:, 0]


def dino_vitb16(pretrained=True, **kwargs):
    network = Vit(num_classes=0)
    url = "https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth"
    network.load_state_dict(torch.hub.load_state_dict_from_url(url, map_location="cpu"))
    return network
"""


def make(name: str, cache: Path) -> None:
    """Draw ``name`` and save it in VBench's layout below ``cache``."""
    prepare_imports([], cache, None)
    _MAKERS[name](cache)


def _saved(cache: Path, path: str, state: Any) -> None:
    (cache / path).parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, cache / path)


def _dino(cache: Path) -> None:
    _saved(cache, "dino_model/dino_vitbase16_pretrain.pth", build("dino-vitb16", False).state_dict())
    folder = cache / "dino_model" / "facebookresearch_dino_main"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "hubconf.py").write_text(HUB)


def _clip(cache: Path, name: str, file: str) -> None:
    """As a TorchScript archive; the published weights are float16, which the package relies on."""
    network = build(name, False)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(parameter.half().float())
    example = torch.rand(1, 3, 224, 224), torch.ones(1, 77, dtype=torch.long)
    traced = torch.jit.trace(network, example, check_trace=False)
    (cache / "clip_model").mkdir(parents=True, exist_ok=True)
    traced.save(str(cache / "clip_model" / file))


def _raft(cache: Path) -> None:
    state = {f"module.{key}": value for key, value in build("raft-things", False).state_dict().items()}
    _saved(cache, "raft_model/models/raft-things.pth", state)


def _viclip(cache: Path) -> None:
    state = {**build("viclip-l14", False).state_dict(), "temp": torch.tensor(0.01)}  # not used to judge
    _saved(cache, "ViCLIP/ViClip-InternVid-10M-FLT.pth", {"model": state})


def _amt(cache: Path) -> None:
    """The network of motion smoothness, as its class draws it."""
    torch.manual_seed(0)
    folder = Path(str(importlib.import_module("vbench").__file__)).parent / "third_party" / "amt"
    importlib.import_module("vbench.motion_smoothness")
    config = importlib.import_module("omegaconf").OmegaConf.load(folder / "cfgs" / "AMT-S.yaml").network
    package = "vbench.third_party.amt.utils.build_utils"
    network: nn.Module = importlib.import_module(package).build_from_cfg(config)
    _saved(cache, "amt_model/amt-s.pth", {"state_dict": network.state_dict()})


def _bert(cache: Path) -> Path:
    """``bert-base-uncased`` with a vocabulary of letters and numbered words; no weights."""
    folder = cache / "bert-base-uncased"
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    known += ["picture", "of", *SAID]
    words = [*known, *(f"word{number}" for number in range(BERT_WORDS - len(known)))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    sizes = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
    sizes |= {"intermediate_size": 3072, "max_position_embeddings": 512, "vocab_size": BERT_WORDS}
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", **sizes}))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"do_lower_case": True, "tokenizer_class": "BertTokenizer"})
    )
    return folder


def _tag2text(cache: Path) -> None:
    """The captions of scene. Its constructor reads BERT's weights, and then overwrites them."""
    torch.manual_seed(0)
    folder = _bert(cache)
    package = "vbench.third_party.tag2Text"
    med = importlib.import_module(f"{package}.med")
    module = importlib.import_module(f"{package}.tag2text")
    config = med.BertConfig.from_json_file(Path(module.CUR_DIR) / "q2l_config.json")
    config.encoder_width = 1024
    text: Any = med.BertModel(config=config, add_pooling_layer=False)
    card = (folder / "config.json").read_text()
    text.save_pretrained(folder)
    (folder / "config.json").write_text(card)
    with contextlib.chdir(cache):  # where it looks for bert-base-uncased first
        network = module.tag2text_caption(image_size=384, vit="swin_b")
    _saved(cache, "caption_model/tag2text_swin_14m.pth", {"model": network.state_dict()})


def _grit(cache: Path, *, rows: bool) -> None:
    """The detector of four dimensions: random, but for what makes it see things, and for their names.

    It finds one box, the whole picture; with ``rows`` a few, some above others, which takes longer.
    """
    torch.manual_seed(0)
    words = (_bert(cache) / "vocab.txt").read_text().split("\n")
    with contextlib.chdir(cache):  # where it looks for bert-base-uncased
        captions = importlib.import_module("vbench.third_party.grit_src.image_dense_captions")
        build_model = importlib.import_module("detectron2.modeling").build_model
        network = build_model(captions.setup_cfg(captions.get_parser(torch.device("cpu"), "")))
    state = network.state_dict()
    for name, tensor in state.items():
        if name.endswith("agn_hm.bias"):
            tensor.fill_(2.0)
        elif name.endswith("cls_score.bias"):  # the object, and then what is none
            tensor.copy_(torch.tensor([6.0, -6.0]))
        elif rows and name.endswith("bbox_pred.2.bias"):  # boxes become broad and low
            tensor[2:].copy_(torch.tensor([5.0, -6.0]))
    told = {words.index(token): words.index(word) for token, word in CAPTIONS.items()}
    head = "roi_heads.text_decoder.textual."  # both tasks share it
    decoder = {name.removeprefix(head): tensor for name, tensor in state.items() if name.startswith(head)}
    teach(decoder, {DESCRIBES: words.index("red"), **told})
    _saved(cache, "grit_model/grit_b_densecap_objectdet.pth", {"model": state})


def teach(state: dict[str, torch.Tensor], told: dict[int, int]) -> None:
    """Let a random text decoder say after each token of ``told`` the one named, whatever it looks at.

    All residual branches add nothing but the last: it knows each token by its embedding (a key) and adds
    the embedding of what follows, which the output, of the same weights, then finds.
    """
    words = torch.nn.functional.normalize(state["embedding.words.weight"], dim=1)
    state["embedding.words.weight"].copy_(words)
    state["embedding.positions.weight"].zero_()
    last = max(int(name.split(".")[3]) for name in state if name.startswith("transformer.encoder.layer."))
    for name, tensor in state.items():
        if name.startswith("transformer.") and ".output.dense." in name:
            tensor.zero_()
    layer = f"transformer.encoder.layer.{last}."
    keys, bias = state[f"{layer}intermediate.dense.weight"], state[f"{layer}intermediate.dense.bias"]
    bias.fill_(-10.0)  # a token's own key gives the root of the width, 27.7, and others about 1
    keys.zero_()
    for row, (token, following) in enumerate(told.items()):
        keys[row] = words[token]
        state[f"{layer}output.dense.weight"][:, row] = 100.0 * words[following]


_MAKERS: dict[str, Callable[[Path], None]] = {
    "dino-vitb16": _dino,
    "clip-vit-b32": lambda cache: _clip(cache, "clip-vit-b32", "ViT-B-32.pt"),
    "clip-vit-l14": lambda cache: _clip(cache, "clip-vit-l14", "ViT-L-14.pt"),
    "aesthetic-linear": lambda cache: _saved(
        cache,
        "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth",
        build("aesthetic-linear", False).state_dict(),
    ),
    "raft-things": _raft,
    "musiq-spaq": lambda cache: _saved(
        cache, "pyiqa_model/musiq_spaq_ckpt-358bb6af.pth", build("musiq-spaq", False).state_dict()
    ),
    "umt-l16": lambda cache: _saved(
        cache, "umt_model/l16_ptk710_ftk710_ftk400_f16_res224.pth", build("umt-l16", False).state_dict()
    ),
    "viclip-l14": _viclip,
    "amt-s": _amt,
    "tag2text": _tag2text,
    "grit": lambda cache: _grit(cache, rows=False),
    "grit-rows": lambda cache: _grit(cache, rows=True),
}


def behind(dimension: str, job: dict[str, Any]) -> dict[str, Any]:
    """For each file the package's vote and the numbers behind it."""
    cache = Path(job["cache"])
    prepare_imports([], Path(job["work"]) / "cache", None)
    module = importlib.import_module(f"vbench.{dimension}")
    return {"dynamic_degree": _flows, "human_action": _actions}[dimension](module, cache, job)


def _flows(module: Any, cache: Path, job: dict[str, Any]) -> dict[str, Any]:
    noted: list[float] = []
    plain = module.DynamicDegree.check_move
    module.DynamicDegree.check_move = lambda self, scores: (noted.extend(scores), plain(self, scores))[1]
    file = cache / "raft_model" / "models" / "raft-things.pth"
    options = Attributes(model=str(file), small=False, mixed_precision=False, alternate_corr=False)
    judge = module.DynamicDegree(options, "cpu")
    found = {}
    for name, path in job["files"].items():
        noted.clear()
        found[name] = {"vote": bool(judge.infer(path)), "behind": [float(score) for score in noted]}
    return found


def _actions(module: Any, cache: Path, job: dict[str, Any]) -> dict[str, Any]:
    noted: list[torch.Tensor] = []
    plain = torch.topk

    def topk(values: torch.Tensor, *args: Any, **options: Any) -> Any:
        noted.append(values[0].clone())
        return plain(values, *args, **options)

    labels = module.build_dict()
    [number] = [int(key) for key, label in labels.items() if label == job["action"]]
    umt = cache / "umt_model" / "l16_ptk710_ftk710_ftk400_f16_res224.pth"
    found = {}
    for name, path in job["files"].items():
        named = Path(job["work"]) / name / f"A person is {job['action']}-0.mp4"
        named.parent.mkdir()
        shutil.copy(path, named)
        torch.topk = topk
        try:
            _, [row] = module.human_action(str(umt), [str(named)], "cpu")
        finally:
            torch.topk = plain
        found[name] = {"vote": bool(row["video_results"]), "behind": [noted.pop()[number].item()]}
    return found


def main() -> None:
    """One of the two verbs."""
    verb, name, *rest = sys.argv[1:]
    if verb == "make":
        make(name, Path(rest[0]))
    else:
        told = behind(name, json.loads(Path(rest[0]).read_text()))
        Path(rest[1]).write_text(json.dumps(told))


if __name__ == "__main__":
    main()
