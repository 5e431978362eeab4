#!/usr/bin/env python3
"""Train a retrieval model on the distilled set beside this file, in plain PyTorch, and say how well it does.

    pip install torch numpy pillow safetensors
    python train.py                                                  # train; score on the test split, if it is here
    python train.py --images photos/ --captions captions.csv         # ... score on photos and captions of yours

Nothing else is needed: distilled.safetensors holds the pairs, backbone.safetensors the frozen image tower, training.json
how to train on them. The student is written into --out as student.safetensors and student.json, which `mdw search` reads.
"""

import argparse
import hashlib
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from captions import encode, read_captions  # beside this file
from checks import METRICS as ALL_METRICS
from checks import (
    SEEDS,
    InputError,
    captions_digest,
    check_files,
    check_record,
    check_texts,
    is_whole,
    list_files,
    read_listed,
)
from photos import photos_of
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

HERE = Path(__file__).resolve().parent
SHOW_EVERY = 5.0  # seconds between two lines of progress
METRICS = ALL_METRICS[:-1]  # recall in percent, text -> image first; without r_mean


def draw(module, gain):
    """First weights of dense layers: normal, cut off at two standard deviations, of variance gain / inputs; biases 0."""
    for layer in (layer for layer in module.children() if isinstance(layer, nn.Linear)):
        std = math.sqrt(gain / layer.in_features) / 0.87962566103423978  # what the cut takes from the deviation
        nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
        nn.init.zeros_(layer.bias)


class ConvNet(nn.Module):
    """Non-overlapping patches: (B, H, W, C) in [0, 1] -> (B, F), the mean over space."""

    def __init__(self, shape, patches, widths):
        super().__init__()
        self.patches, channels = patches, shape[2]
        for stage, (patch, width) in enumerate(zip(patches, widths)):
            setattr(self, f"Dense_{2 * stage}", nn.Linear(patch * patch * channels, width))
            setattr(self, f"Dense_{2 * stage + 1}", nn.Linear(width, width))
            channels = width
        self.position = nn.Parameter(torch.randn(shape[0] // patches[0], shape[1] // patches[0], widths[0]))
        self.width = widths[-1]
        draw(self, 2)

    def forward(self, images):
        x = (images - 0.5) * 4
        for stage, p in enumerate(self.patches):
            b, h, w, c = x.shape
            x = x.reshape(b, h // p, p, w // p, p, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h // p, w // p, p * p * c)
            x = getattr(self, f"Dense_{2 * stage}")(x)
            x = F.gelu(x + self.position if stage == 0 else x, approximate="tanh")
            x = x + F.gelu(getattr(self, f"Dense_{2 * stage + 1}")(x), approximate="tanh")
        return x.mean((1, 2))


class MobileNet(nn.Module):
    """MobileNet V1 or V2: (B, H, W, C) in [0, 1] -> (B, F), the mean over space; of log-mels, of one channel, over time."""

    def __init__(self, shape, layout, tensors):
        super().__init__()
        self.operations, self.input, self.one_channel = layout["operations"], layout["input"], shape[2] == 1
        self.factor = -(-128 // min(shape[:2])) if self.one_channel else 1
        for operation in self.operations:
            if "w" in operation:
                weight = tensors[f"{operation['w']}.weight"]
                self.width, groups = len(weight), len(weight) if operation["op"] == "DEPTHWISE_CONV_2D" else 1
                setattr(self, operation["w"], nn.Conv2d(weight.shape[1] * groups, self.width, tuple(weight.shape[2:]),
                                                        operation["stride"], groups=groups))

    def forward(self, images):
        images = images.movedim(-1, 1)
        if self.one_channel:
            if self.factor > 1:
                images = F.interpolate(images, scale_factor=self.factor, mode="bilinear")
            images = images.repeat(1, 3, 1, 1)
        values = {self.input: 2 * images - 1}
        for operation in self.operations:
            x = values[operation["in"][0]]
            if operation["op"] == "AVERAGE_POOL_2D":
                break
            if operation["op"] == "ADD":
                y = x + values[operation["in"][1]]
            else:
                y = self.convolve(getattr(self, operation["w"]), x)
                y = y.clamp(0, 6) if operation["act"] == 3 else y.relu() if operation["act"] == 1 else y
            values[operation["out"]] = y
        return x.mean(3).transpose(1, 2).flatten(1) if self.one_channel else x.mean((2, 3))

    @staticmethod
    def convolve(convolution, x):
        """TensorFlow's SAME padding: the odd pixel goes to the bottom and to the right."""
        pads = []
        for size, kernel, stride in zip(x.shape[:1:-1], convolution.kernel_size[::-1], convolution.stride[::-1]):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return convolution(F.pad(x, pads))


def backbone_of(image, tensors):
    """The image tower of training.json, with its weights; `tensors` without the prefix "backbone."."""
    tower = image["tower"]
    if tower["kind"] == "convnet":
        network = ConvNet(image["shape"], tower["patches"], tower["widths"])
    elif tower["kind"] == "mobilenet":
        network = MobileNet(image["shape"], tower, tensors)
    else:
        named = "".join(f", {name} {tower[name]}" for name in ("name", "source", "sha256") if name in tower)
        raise InputError(f"This program does not compute the image tower of this set ({tower['kind']}{named}); run "
                         "`mdw train` of mdw-jax instead.")
    if tensors:
        network.load_state_dict(tensors)
    return network


class Head(nn.Module):
    """h = W1 x; LayerNorm(W2 gelu(h) + h)."""

    def __init__(self, inputs, dim):
        super().__init__()
        self.projection, self.fc, self.layer_norm = nn.Linear(inputs, dim), nn.Linear(dim, dim), nn.LayerNorm(dim)
        draw(self, 1)

    def forward(self, x):
        h = self.projection(x)
        return self.layer_norm(self.fc(F.gelu(h)) + h)


class Student(nn.Module):
    """The dual encoder. In mode "projection" the backbone is frozen, and the image branch takes its features."""

    def __init__(self, record, tensors):
        super().__init__()
        image = record["image"]
        self.backbone, self.frozen = backbone_of(image, tensors), image["mode"] == "projection"
        self.backbone.requires_grad_(not self.frozen)
        dim = record["dim"] if image["head"] else self.backbone.width
        self.image_head = Head(self.backbone.width, dim) if image["head"] else None
        self.text_head = Head(record["text"]["width"], dim)

    @torch.no_grad()
    def inputs(self, images):
        """Images (B, H, W, C) in [0, 1] -> what `embed_images` takes: features by the frozen backbone, or the images."""
        return torch.cat([self.backbone(part) for part in images.split(100)]) if self.frozen else images

    def embed_images(self, inputs):
        """-> (B, D), unit length."""
        features = inputs if self.frozen else self.backbone(inputs)
        return F.normalize(self.image_head(features) if self.image_head else features, dim=-1)

    def embed_texts(self, texts):
        """Text features (B, d) -> (B, D), unit length."""
        return F.normalize(self.text_head(texts), dim=-1)

    def branches(self):
        image = [p for part in (self.backbone, self.image_head) if part for p in part.parameters() if p.requires_grad]
        return {"image": image, "text": list(self.text_head.parameters())}


def cross_entropy(target, logits, weight=lambda target, d: 1):
    """-sum target log softmax(logits), rows and columns averaged."""
    return sum((-(target(d) * logits.log_softmax(d)).sum(d) * weight(target, d)).mean() for d in (0, 1)) / 2


def weighted_bce(match, other, target):
    terms = -target * (match + 1e-6).log() - (1 - target) * (other + 1e-6).log()
    return sum((terms * mask).sum() / mask.sum().clamp(min=1) for mask in (target > 0.5, target <= 0.5)) / 2


LOSSES = {  # (logits, block of P) -> scalar
    "probability": lambda s, p: cross_entropy((10 * p).softmax, s),
    "nce": lambda s, p: cross_entropy(lambda d: p, s),
    "cwcl": lambda s, p: cross_entropy(lambda d: p, s, lambda target, d: 1 / target(d).sum(d)),
    "kl": lambda s, p: sum(((10 * p).softmax(d) * ((10 * p).log_softmax(d) - s.log_softmax(d))).mean() for d in (0, 1)) / 2,
    "bce": F.binary_cross_entropy_with_logits,
    "mse": lambda s, p: F.mse_loss(s.sigmoid(), p),
    "wbce": lambda s, p: weighted_bce(s.sigmoid(), (-s).sigmoid(), p),
    "wbce_published": lambda s, p: weighted_bce(s.sigmoid(), 1 - s.sigmoid(), p),
}


def correspondence(p, rows, alpha):
    """The block of the correspondence matrix P at rows x rows: how far image i belongs to text j."""
    if not p:
        return torch.eye(len(rows), device=rows.device)
    if "matrix" in p:
        return p["matrix"][rows][:, rows]
    left, right = p["left"][rows], p["right"][rows]
    return torch.diag(p["diag"][rows]) + alpha / left.shape[1] * left @ right.T


def train(record, pairs, tensors, device, name="student"):
    """One student, trained on the set as its JAX counterpart is: SGD with momentum and weight decay, random batches."""
    if record["loss"] not in LOSSES:
        raise InputError(f"The loss of this set, '{record['loss']}', comes from outside mdw-jax: add it to LOSSES in "
                         "train.py.")
    student, loss_of = Student(record, tensors).to(device), LOSSES[record["loss"]]
    inputs, texts = student.inputs(pairs["images"].to(device)), pairs["texts"].to(device)
    p = {name: tensor.to(device) for name, tensor in pairs["p"].items()}
    groups = [{"params": parameters, "lr": record["step_sizes"][branch], "size": record["step_sizes"][branch]}
              for branch, parameters in student.branches().items()]
    optimizer = torch.optim.SGD(groups, **{name: record["optimizer"][name] for name in ("momentum", "weight_decay")})
    steps, done, shown = sum(phase["steps"] for phase in record["phases"]), 0, time.monotonic()
    for phase in record["phases"]:
        for group in optimizer.param_groups:
            group["lr"] = phase["factor"] * group["size"]
        for _ in range(phase["steps"]):
            rows = torch.randperm(len(texts), device=device)[:record["batch"]]
            logits = student.embed_images(inputs[rows]) @ student.embed_texts(texts[rows]).T / record["tau"]
            loss = loss_of(logits, correspondence(p, rows, record["alpha"]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
            if time.monotonic() - shown >= SHOW_EVERY:
                print(f"{name}: {done} of {steps} steps, loss {loss.item():.4g}", flush=True)
                shown = time.monotonic()
    if not all(part.isfinite().all() for part in (loss, *student.parameters())):
        raise InputError("The training diverged: weights or the loss of a student are not finite numbers, and nothing was "
                         "written; export or copy the set again, or give another --seed.")
    return student.eval()


def own_data(options, record, student):
    """Photos and captions of the user: inputs (N, ...), text features (K, d), image_of (K,); sha256 of the captions."""
    rows = read_captions(options.captions, options.columns)
    captions, width = [caption for _, caption in rows], record["text"]["width"]
    names = list(dict.fromkeys(name for name, _ in rows))
    missing = [name for name in names if not (Path(options.images) / name).is_file()]
    if missing:
        raise InputError(f"{len(missing)} of {len(names)} images of '{options.captions}' are not in '{options.images}', "
                         f"the first is {missing[0]}.")
    if options.caption_features:
        try:
            texts = np.load(options.caption_features, allow_pickle=False).astype(np.float32)
        except (OSError, ValueError, EOFError, AttributeError) as error:
            raise InputError(f"'{options.caption_features}' is no array of numbers that can be read ({error}); write it by "
                             "numpy.save.") from None
        if texts.shape != (len(rows), width) or not np.isfinite(texts).all():
            raise InputError(f"'{options.caption_features}' is of shape {texts.shape}; the captions need finite numbers of "
                             f"shape ({len(rows)}, {width}).")
    else:
        texts = encode(captions, record["text"], options.text_model)
    parts = []
    for start in range(0, len(names), 100):
        photos = photos_of(options.images, names[start:start + 100], record["image"])
        parts.append(student.inputs(torch.from_numpy(photos).to(options.device).float() / 255))
    numbers = {name: number for number, name in enumerate(names)}
    image_of = torch.tensor([numbers[name] for name, _ in rows])
    return {"images": torch.cat(parts), "texts": torch.from_numpy(texts), "image_of": image_of,
            "captions_sha256": captions_digest(captions)}


@torch.no_grad()
def recalls(student, data, device):
    """{metric: percent}, and r_mean, their mean. An image's best caption counts; ties count against the model."""
    v = torch.cat([student.embed_images(part.to(device)) for part in data["images"].split(500)])
    t = torch.cat([student.embed_texts(part.to(device)) for part in data["texts"].split(500)])
    similarity, image_of = v @ t.T, data["image_of"].to(device).long()
    own = similarity[image_of, torch.arange(len(t), device=device)]
    belongs = image_of[None, :] == torch.arange(len(v), device=device)[:, None]
    best = similarity.masked_fill(~belongs, -math.inf).amax(1, keepdim=True)
    ranks = ((~(similarity < own)).sum(0) - 1, (~(similarity < best) & ~belongs).sum(1))
    values = [100 * (rank < k).double().mean().item() for rank in ranks for k in (1, 5, 10)]
    return {**dict(zip(METRICS, values)), "r_mean": float(np.mean(values))}


def is_test_split(record, data):
    """Whether data are the run's test split, and how that is known."""
    known = record.get("test_captions_sha256")
    if "captions_sha256" not in data:
        return True, ""  # its features are part of this export
    if known:
        return data["captions_sha256"] == known, "by the sha256 of their captions"
    same = [len(data["images"]), len(data["texts"])] == [record["test"][name] for name in ("images", "captions")]
    return same, "by their number alone: this export is of a version that wrote no sha256 of its test captions"


def report(scores, record, data):
    """Print the scores of the students, beside those that were to be expected on the run's test split."""
    on_test, how = is_test_split(record, data)
    values = [score["r_mean"] for score in scores]
    mean, spread = np.mean(values), f" +- {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    print("  ".join(f"{name} {np.mean([score[name] for score in scores]):.2f}" for name in METRICS))
    print(f"r_mean    {mean:.2f}{spread}  ({len(values)} student{'s' if len(values) > 1 else ''})")
    expected = record["expected"]
    if not expected:
        print("expected  unknown: no student of this set was evaluated before the export")
        return
    there, std = expected["mean"]["r_mean"], expected["std"]["r_mean"]
    print(f"expected  {there:.2f} +- {std:.2f}  ({expected['students']} students of the run, on its test split of "
          f"{record['test']['images']} images and {record['test']['captions']} captions)")
    if expected["select_on"] == "test":
        print("          These are each student's best evaluation on test, which is optimistic.")
    if not on_test:
        print(f"          Your data are others, {how}: that score says nothing about them. If the set\n"
              "          was made from some of them, yours is too high: it counts pairs that the set has seen.")
        return
    if how:
        print(f"          Your data are that test split, {how}.")
    if expected["t"] is not None:
        half = expected["t"] * std * math.sqrt(1 / len(values) + 1 / expected["students"])
        low, high = there - half, there + half
        print(f"          95 % interval for {len(values)} more: {max(low, 0):.2f} to {min(high, 100):.2f}; {mean:.2f} lies "
              f"{'inside' if low <= mean <= high else 'OUTSIDE'}")


def checked(entry):
    """The tensors of a file of this export, float32 but for integers, if its sha256 is the one in training.json."""
    path = HERE / Path(entry["file"]).name
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != entry["sha256"]:
        raise InputError(f"{path} is missing or is not the file that training.json names (sha256); copy the export "
                         "again.")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} cannot be read ({error}); copy the export again.") from None
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def read_record():
    """What training.json says, checked."""
    path = HERE / "training.json"
    try:
        record = json.loads(read_listed(path))
    except (OSError, ValueError, InputError) as error:
        raise InputError(f"training.json in '{HERE}' cannot be read ({error}); export or copy the set again.") from None
    with_directory(check_record, record)
    with_directory(check_files, record)
    return record


def with_directory(check, *what):
    """Run a check of training.json; its complaint with the directory."""
    try:
        check(*what)
    except InputError as error:
        raise InputError(f"training.json in '{HERE}' cannot be used: {error}; export or copy the set again.") from None


def load_set(record):
    """The distilled pairs: images (M, H, W, C) as students see them, texts (M, d), parameters of P."""
    tensors, (height, width, _) = checked(record["set"]), record["image"]["shape"]
    with_directory(check_texts, record, tensors["texts"].shape)
    images = tensors["images"]
    if images.shape[1:3] != (height, width):  # stored smaller than students see them
        images = F.interpolate(images.movedim(-1, 1), (height, width), mode="bilinear").movedim(1, -1)
    prefix = "correspondence."
    p = {name[len(prefix):]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return {"images": images, "texts": tensors["texts"], "p": p}


def save(student, record, scores, options):
    """student.safetensors and student.json, and their checksums: all that it takes to embed images and captions later."""
    options.out.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in student.state_dict().items()}
    save_file(tensors, options.out / "student.safetensors")
    sha256 = hashlib.sha256((options.out / "student.safetensors").read_bytes()).hexdigest()
    image = {name: value for name, value in record["image"].items() if name != "start"}
    about = {"trained_by": "train.py (PyTorch)", "seed": options.seed, "set": {**record.get("about", {}), **record["set"]},
             "scores": scores, "expected": record["expected"]}
    description = {"format": "mdw_jax.student.1", "file": "student.safetensors", "sha256": sha256, "image": image,
                   "text": record["text"], "dim": record["dim"], "tau": record["tau"], "about": about}
    (options.out / "student.json").write_text(json.dumps(description, indent=2))
    list_files(options.out, ("student.json", "student.safetensors"))


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", metavar="DIR", help="photos to score on")
    parser.add_argument("--captions", metavar="FILE.csv", help="their captions: columns image and caption")
    parser.add_argument("--caption-features", metavar="FILE.npy", help="features of these captions, already encoded")
    parser.add_argument("--text-model", metavar="DIR", help="the text encoder of training.json (needs transformers)")
    parser.add_argument("--columns", metavar="IMAGE,CAPTION", help="these columns, if they are called otherwise")
    parser.add_argument("--students", type=int, default=1, metavar="N", help="students to train; the first is kept (1)")
    parser.add_argument("--seed", type=int, default=0, help="of the first student (0)")
    parser.add_argument("--out", type=Path, default=HERE / "student", metavar="DIR", help="where the student goes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    if bool(options.images) != bool(options.captions) or options.students < 1:
        parser.error("--images and --captions belong together, and there is at least 1 student")
    if not is_whole(options.seed, 0, SEEDS - options.students):
        parser.error(f"--seed must be a whole number of at least 0 and at most {SEEDS - 1}")
    try:
        torch.empty(0, device=options.device)
    except (RuntimeError, AssertionError) as error:  # how torch says that it was built without CUDA
        parser.error(f"--device {options.device} cannot be used ({str(error).splitlines()[0]})")
    return options


def main(arguments=None):
    options = parse(arguments)
    record = read_record()
    pairs = load_set(record)
    stored = checked(record["backbone"]) if record["backbone"] else {}
    tensors = {name.removeprefix("backbone."): tensor for name, tensor in stored.items()}
    steps = sum(phase["steps"] for phase in record["phases"])
    print(f"{len(pairs['texts'])} pairs, {steps} steps ({record['chosen']['how']}), on {options.device}", flush=True)
    data = checked(record["test"]) if record["test"]["file"] else None
    if options.images:  # before the training: a wrong path is told at once
        data = own_data(options, record, Student(record, tensors).to(options.device))
    students, scores = [], []
    for number in range(options.students):
        torch.manual_seed(options.seed + number)
        name = f"student {number + 1} of {options.students}"
        students.append(train(record, pairs, tensors, options.device, name))
        scores += [recalls(students[-1], data, options.device)] if data else []
    try:
        save(students[0], record, scores[0] if scores else None, options)
    except OSError as error:
        raise InputError(f"The student cannot be written into '{options.out}' ({error.strerror}); give another --out."
                         ) from None
    if scores:
        report(scores, record, data)
    else:
        print("The test split is not part of this export: give --images DIR and --captions FILE.csv to score the student.")
    print(f"student   {options.out}")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
