"""Small faithful inputs in the file forms that people hold, one directory for each: content is drawn, forms are real."""

import csv
import io
import json
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

N = 24
SPLIT = ["train"] * 16 + ["val"] * 4 + ["test"] * 4
COLORS = {"red": (220, 40, 40), "green": (40, 190, 40), "blue": (40, 40, 220), "yellow": (230, 220, 40),
          "white": (240, 240, 240), "purple": (160, 40, 190)}


def color(i: int) -> str:
    return list(COLORS)[i % len(COLORS)]


def picture(i: int, size=(64, 48)) -> Image.Image:
    generator = np.random.default_rng(i)
    pixels = generator.integers(0, 70, (size[1], size[0], 3), dtype=np.uint8)
    x, y = int(generator.integers(0, size[0] // 2)), int(generator.integers(0, size[1] // 2))
    pixels[y:y + size[1] // 2, x:x + size[0] // 2] = COLORS[color(i)]
    return Image.fromarray(pixels)


def jpeg(i: int) -> bytes:
    file = io.BytesIO()
    picture(i).save(file, "JPEG", quality=90)
    return file.getvalue()


def captions(i: int) -> list[str]:
    c = color(i)
    return [f"A {c} block stands on a dark field .", f"The {c} thing , seen from afar , is number {i} .",
            f"One {c} rectangle .", f"A noisy picture with a {c} patch in it .", f"{c} on black"]


def name(i: int) -> str:
    return f"{1000268201 + 7919 * i}_{i:010x}.jpg"


def coco_name(i: int) -> str:
    return f"{139 + 31 * i:012d}.jpg"


def write_images(directory: Path, names=name, only=range(N)) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for i in only:
        (directory / names(i)).write_bytes(jpeg(i))
    return directory


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def pairs() -> list[tuple[str, str]]:
    return [(name(i), caption) for i in range(N) for caption in captions(i)]


def as_csv(rows, header=("image", "caption"), **dialect) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n", **dialect)
    writer.writerow(header)
    writer.writerows(rows)
    return file.getvalue()


def kaggle_flickr8k(root: Path) -> Path:
    """captions.txt: CSV under a .txt name, and the same as people rewrite it."""
    write_images(root / "Images")
    plain, quotes = pairs(), pairs()
    quotes[3] = (quotes[3][0], 'A man holds a sign that says "hello" .')
    quotes[4] = (quotes[4][0], '"Hello" is on the sign .')
    write(root / "captions.txt", as_csv(plain))
    write(root / "captions_quotes.csv", as_csv(quotes))
    write(root / "captions_bom_crlf.csv", "\ufeff" + as_csv(quotes).replace("\n", "\r\n"))
    write(root / "captions_utf16.csv", "\ufeff" + as_csv(quotes, delimiter="\t"), "utf-16-le")
    write(root / "captions_unquoted.csv", "image,caption\n" + "".join(f"{n},{c}\n" for n, c in plain))
    write(root / "captions_rawquotes.csv", "image,caption\n" + "".join(f"{n},{c.replace(',', '')}\n" for n, c in quotes))
    write(root / "captions_latin1.csv", "image,caption\n" + "".join(f"{name(i)},a café no {i}\n" for i in range(N)),
          "latin-1")
    write(root / "captions_semicolon.csv", "image;caption\n" + "".join(f"{name(i)};a {color(i)} block\n" for i in range(N)))
    write(root / "captions_index.csv", ",image,caption\n" + "".join(f"{i},{name(i)},a block\n" for i in range(N)))
    write(root / "captions_long.csv", "image,number,caption\n" + "".join(f"{n},0,{c}\n" for n, c in plain))
    write(root / "captions_missing.csv", "image,caption\n" + "".join(
        f"{name(i)},{ {3: 'nan', 5: 'N/A', 7: ''}.get(i, 'a block')}\n" for i in range(N)))
    write(root / "captions_lists.csv", as_csv([(name(i), str(captions(i))) for i in range(N)]))
    swallow = pairs()
    swallow[10], swallow[18] = (swallow[10][0], '"so long said the dog'), (swallow[18][0], 'the sign says : bye"')
    write(root / "captions_swallow.csv", "image,caption\n" + "".join(f"{n},{c.replace(',', '')}\n" for n, c in swallow))
    write(root / "captions_multiline.csv", as_csv([(name(i), f"a block\non line {i}") for i in range(N)]))
    return root


def flickr8k_text(root: Path) -> Path:
    """Flickr8k_text: name#k, tab, caption; lists of the images of each split; one name that has no image."""
    write_images(root / "Flicker8k_Dataset")
    rows = [f"{name(i)}#{k}\t{caption}" for i in range(N) for k, caption in enumerate(captions(i))]
    bare = [f"{n}\t{c}" for n, c in pairs()]
    absent = [f"2258277193_586949ec62.jpg.1#{k}\tpeople waiting for the subway" for k in range(5)]
    write(root / "Flickr8k.token.txt", "\n".join(rows + absent) + "\n")
    write(root / "results_20130124.token", "\n".join(rows) + "\n")
    for split, word in (("train", "train"), ("val", "dev"), ("test", "test")):
        write(root / f"Flickr_8k.{word}Images.txt", "".join(name(i) + "\n" for i in range(N) if SPLIT[i] == split))
    write(root / "token_header.tsv", "image\tcaption\n" + "\n".join(rows) + "\n")
    write(root / "token_plain.tsv", "image\tcaption\n" + "\n".join(bare) + "\n")
    for place, text in ((3, '"Hello" is written on a sign'), (9, '"unbalanced mark at the start'), (17, 'and one here"')):
        bare[place] = f"{bare[place].split(chr(9))[0]}\t{text}"
    write(root / "token_quotes.tsv", "image\tcaption\n" + "\n".join(bare) + "\n")
    write(root / "pandas.tsv", as_csv([(n, f'{c} "so"') for n, c in pairs()], delimiter="\t"))
    return root


def kaggle_flickr30k(root: Path) -> Path:
    """results.csv: "| " between cells, and one row that lacks its second mark."""
    write_images(root / "flickr30k_images")
    rows = [f"{name(i)}| {k}| {c}" for i in range(N) for k, c in enumerate(captions(i))]
    write(root / "results_mended.csv", "image_name| comment_number| comment\n" + "\n".join(rows) + "\n")
    rows[14] = rows[14].replace("| 4| ", "| 4   ", 1)
    write(root / "results.csv", "image_name| comment_number| comment\n" + "\n".join(rows) + "\n")
    return root


def hub_flickr30k(root: Path) -> Path:
    """flickr_annotations_30k.csv: captions as a JSON list in a cell, the split in a column."""
    write_images(root / "flickr30k-images")
    write(root / "flickr_annotations_30k.csv", as_csv(
        [(json.dumps(captions(i)), json.dumps(list(range(5 * i, 5 * i + 5))), SPLIT[i], name(i), i) for i in range(N)],
        ("raw", "sentids", "split", "filename", "img_id")))
    return root


def albef_flickr30k(root: Path) -> Path:
    """flickr30k_{train,val,test}.json of ALBEF and BLIP, which the peers read: captions a string, or a list."""
    write_images(root / "flickr30k-images")
    for split in ("train", "val", "test"):
        rows = [{"image": f"flickr30k-images/{name(i)}", "caption": captions(i)} for i in range(N) if SPLIT[i] == split]
        if split == "train":
            rows = [{**row, "caption": caption, "image_id": 7} for row in rows for caption in row["caption"]]
        write(root / f"flickr30k_{split}.json", json.dumps(rows))
    return root


def coco(root: Path) -> Path:
    """captions_{train,val}2017.json, as they are fetched, beside train2017 and val2017."""
    for word, only in (("train", range(16)), ("val", range(16, N))):
        write_images(root / f"{word}2017", coco_name, only)
        write(root / "annotations" / f"captions_{word}2017.json", json.dumps({
            "info": {"year": 2017}, "licenses": [],
            "images": [{"file_name": coco_name(i), "height": 48, "width": 64, "id": 139 + 31 * i} for i in only],
            "annotations": [{"image_id": 139 + 31 * i, "id": 1000 + 5 * i + k, "caption": c + "\n" * (k == 2)}
                            for i in only for k, c in enumerate(captions(i))]}))
    return root


def karpathy_coco(root: Path) -> Path:
    """dataset_coco.json: filepath, restval; zips with one directory inside; and the same with one fault each."""
    file = lambda i: f"COCO_{'train' if i < 12 else 'val'}2014_{coco_name(i)}"
    images = [{"filepath": "train2014" if i < 12 else "val2014", "filename": file(i), "imgid": i,
               "split": SPLIT[i] if i < 12 or SPLIT[i] != "train" else "restval",
               "sentences": [{"raw": c, "imgid": i, "sentid": 5 * i + k} for k, c in enumerate(captions(i))]}
              for i in range(N)]
    for word, only in (("train2014", range(12)), ("val2014", range(12, N))):
        write_images(root / word, file, only)
        with zipfile.ZipFile(root / f"{word}.zip", "w") as archive:
            for path in sorted((root / word).iterdir()):
                archive.write(path, f"{word}/{path.name}")

    def save(stem: str, change=lambda images: None) -> None:
        copy = json.loads(json.dumps(images))
        change(copy)
        write(root / f"{stem}.json", json.dumps({"images": copy, "dataset": "coco"}))

    save("dataset_coco")
    save("empty", lambda copy: copy[3]["sentences"][2].update(raw=""))
    save("upper", lambda copy: copy[0].update(filename=copy[0]["filename"].replace(".jpg", ".JPG")))
    save("absent", lambda copy: copy.append({**copy[0], "filename": "COCO_train2014_000000999999.jpg",
                                             "sentences": [{"raw": "gone", "sentid": 900}]}))
    save("text_ids", lambda copy: [s.update(sentid=str(s["sentid"])) for image in copy for s in image["sentences"]])
    save("trained_only", lambda copy: [image.update(split="train") for image in copy if image["split"] == "val"])
    return root


def sidecar(root: Path) -> Path:
    """x.jpg beside x.txt."""
    write_images(root)
    for i in range(N):
        write(root / name(i).replace(".jpg", ".txt"), captions(i)[0] + "\n")
    return root


def img2dataset_files(root: Path) -> Path:
    """What img2dataset writes as files: 00000/000000000.jpg, .txt, .json."""
    for i in range(N):
        stem = root / f"{i // 12:05d}" / f"{i // 12:05d}{i:04d}"
        write(stem.with_suffix(".txt"), captions(i)[0])
        write(stem.with_suffix(".json"), json.dumps({"caption": captions(i)[0], "url": "u", "key": stem.name,
                                                     "status": "success"}))
        stem.with_suffix(".jpg").write_bytes(jpeg(i))
    write(root / "00000_stats.json", json.dumps({"count": 12, "successes": 12}))
    return root


def image_folder(root: Path) -> Path:
    """Directories train, validation, test, each with metadata.jsonl, as the datasets library reads them."""
    for split, word in (("train", "train"), ("val", "validation"), ("test", "test")):
        only = [i for i in range(N) if SPLIT[i] == split]
        write_images(root / word, name, only)
        write(root / word / "metadata.jsonl", "".join(
            json.dumps({"file_name": name(i), "text": captions(i)[0]}) + "\n" for i in only))
    return root


def llava(root: Path) -> Path:
    """metadata.json of LLaVA's pretraining set, and its conversations."""
    write_images(root / "images")
    write(root / "metadata.json", json.dumps([{"id": f"{i:09d}", "image": name(i), "caption": captions(i)[0],
                                               "blip_caption": "a block", "url": "http://a.b/c.jpg"} for i in range(N)]))
    write(root / "chat.json", json.dumps([{"id": f"{i:09d}", "image": name(i), "conversations": [
        {"from": "human", "value": "Describe this.\n<image>"}, {"from": "gpt", "value": captions(i)[0]}]}
        for i in range(N)]))
    return root


def numbered(root: Path) -> Path:
    """A table with numbers, and files called after them with twelve digits."""
    write_images(root / "images", lambda i: f"{i:012d}.jpg")
    write(root / "t.csv", "image_id,caption\n" + "".join(f"{i},{captions(i)[2]}\n" for i in range(N)))
    write(root / "t0.csv", "image_id,caption\n" + "".join(f"{i:012d},{captions(i)[2]}\n" for i in range(N)))
    write(root / "t.jsonl", "".join(json.dumps({"image_id": i, "caption": captions(i)[2]}) + "\n" for i in range(N)))
    return root


def copies(root: Path) -> Path:
    """Every picture twice, under two names."""
    lines = []
    for i in range(N):
        for suffix in ("", "_copy"):
            file = name(i).replace(".jpg", f"{suffix}.jpg")
            write_images(root, lambda _, file=file: file, [i])
            lines.append({"image": file, "caption": f"picture number {i}"})
    write(root / "t.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return root


def addresses(root: Path) -> Path:
    """Train_GCC-training.tsv: captions and addresses, without a header; and with one."""
    rows = "".join(f"{captions(i)[0]}\thttp://a.b/{i}.jpg\n" for i in range(N))
    write(root / "Train_GCC-training.tsv", rows)
    write(root / "urls.tsv", "caption\turl\n" + rows)
    return root


FORMS = (kaggle_flickr8k, flickr8k_text, kaggle_flickr30k, hub_flickr30k, albef_flickr30k, coco, karpathy_coco, sidecar,
         img2dataset_files, image_folder, llava, numbered, copies, addresses)


def write_all(root: Path) -> Path:
    """All forms, each in the directory of its name."""
    for form in FORMS:
        form(root / form.__name__)
    return root
