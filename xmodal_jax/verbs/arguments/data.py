"""Arguments of `xmodal data` and of the demo."""

from pathlib import Path

from xmodal_jax.verbs.arguments import EXIT_CODES, verb

KINDS = ("precomp", "karpathy", "coco", "flickr", "csv", "jsonl", "reid", "butd")


def add_demo(verbs) -> None:
    parser = verb(
        verbs, "demo", "verbs.demo:main", "the main job on the built-in data set, with a report", "xmodal demo"
    )
    parser.add_argument("--workdir", type=Path, default=Path("demo"), help="folder for data, run and report")
    parser.add_argument(
        "--system",
        choices=["stt_att", "scan"],
        default="stt_att",
        help="what is trained: STT with attention, which also writes captions and paraphrases, or SCAN, in less time",
    )
    parser.add_argument("--tiny", action="store_true", help="60 pictures and two epochs, for a quick check")
    parser.add_argument("--seed", type=int, default=0)


def add_data(verbs) -> None:
    parser = verbs.add_parser("data", help="make, import and check data sets", epilog=EXIT_CODES)
    metavar = "scenes|import|check|attach|split|text-features|concepts"
    kinds = parser.add_subparsers(dest="data_verb", required=True, metavar=metavar)
    example = "xmodal data scenes --out data/scenes"
    scenes = verb(kinds, "scenes", "data.scenes:main", "make the built-in data set", example)
    scenes.add_argument("--out", type=Path, required=True)
    scenes.add_argument("--images", type=int, default=3000, help="number of pictures, 5 captions each")
    scenes.add_argument("--seed", type=int, default=0)
    check = verb(kinds, "check", "data.check:main", "check a prepared data set", "xmodal data check data/f8k")
    check.add_argument("directory", type=Path)
    check.add_argument("--json", type=Path, help="also write the findings here")
    check.add_argument("--minimum-count", type=int, default=4, help="what data.minimum_count of a training will be")
    check.add_argument(
        "--allow-unknown", action="store_true", help="captions of which less than half is known are only a warning"
    )
    add_import(kinds)
    add_changes(kinds)
    add_text_features(kinds)
    add_concepts(kinds)


def add_import(kinds) -> None:
    parser = verb(
        kinds,
        "import",
        "data.sources:main",
        "import features and captions",
        "xmodal data import precomp f8k_precomp --out data/f8k --features ims,glob",
    )
    parser.add_argument("kind", choices=KINDS, help="layout of the source")
    parser.add_argument("source", type=Path, help="folder (precomp; coco, butd) or file (all others)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name", help="name of the data set; that of the source by default")
    parser.add_argument(
        "--features",
        action="extend",
        type=lambda text: text.split(","),
        help="precomp: arrays to take, ims and, or, glob; others: the feature file",
    )
    parser.add_argument("--images", type=Path, help="folder of pictures to attach")
    parser.add_argument("--ids", type=Path, help="ids of the feature file's rows, one a line")
    parser.add_argument(
        "--match",
        choices=["filename", "cocoid", "imgid"],
        help="karpathy, butd: the name of an image that --ids or the TSV means; file name and COCO id by default",
    )
    parser.add_argument("--captions", type=Path, help="butd: Karpathy's dataset_*.json or COCO's captions_*.json")
    parser.add_argument("--captions-per-image", type=int, help="precomp: where it cannot be told from the files")
    parser.add_argument(
        "--feature-dtype",
        choices=["float16", "bfloat16", "float32", "float64"],
        help="what the bytes of the features are, where that is not what the file says or, in a TSV, float32",
    )
    parser.add_argument("--on-nonfinite", choices=["error", "drop-image"], default="error")
    parser.add_argument("--restval-to-train", action="store_true", help="restval images train too")
    parser.add_argument("--image-col", help="csv, jsonl: column of the image file names")
    parser.add_argument("--caption-col", help="csv, jsonl: column of the captions")
    parser.add_argument("--split", help="coco, flickr, jsonl, reid: the split of all images, where SOURCE has none")
    parser.add_argument("--split-col", help="csv, jsonl: column of the splits")
    parser.add_argument("--delimiter", help="csv: column separator; found out by default")
    parser.add_argument("--quoting", choices=["minimal", "none"], default="minimal", help="csv: none: quotes are text")
    parser.add_argument("--encoding", help="of the text files, where they are neither UTF-8 nor have a byte order mark")
    parser.add_argument("--dev", type=float, default=0.0, help="csv, flickr, jsonl without splits: share of dev images")
    parser.add_argument("--test", type=float, default=0.0, help="the same of test images")
    parser.add_argument("--dtype", choices=["float16", "float32"], default="float32", help="butd: stored type")
    parser.add_argument("--max-broken", type=float, default=0.01, help="butd: share of broken rows to tolerate")


def add_changes(kinds) -> None:
    example = "xmodal data attach data/f8k --images Flicker8k_Dataset"
    what = "attach pictures or a further feature to a prepared data set"
    attach = verb(kinds, "attach", "data.attach:main", what, example)
    attach.add_argument("directory", type=Path)
    attach.add_argument("--images", type=Path, help="folder of pictures, called by the ids of images")
    attach.add_argument(
        "--feature",
        metavar="NAME=FILE",
        help="a vector of every image: a file that names its rows, or one a split with {split} in its path",
    )
    attach.add_argument("--ids", type=Path, help="names of the rows of --feature, one a line")
    example = "xmodal data split data/shop --by product --table products.csv --dev 0.1 --test 0.1 --out data/shop2"
    split = verb(kinds, "split", "data.split:main", "split a prepared data set anew, without leaks", example)
    split.add_argument("directory", type=Path)
    split.add_argument("--out", type=Path, required=True)
    split.add_argument("--by", default="id", help="images with one value of this column stay together; id by default")
    split.add_argument("--table", type=Path, help="CSV or TSV with the columns image and that of --by")
    split.add_argument("--dev", type=float, default=0.0, help="share of dev")
    split.add_argument("--test", type=float, default=0.0, help="share of test")
    split.add_argument("--encoding", help="of the table, where it is not UTF-8")


def add_text_features(kinds) -> None:
    parser = verb(
        kinds,
        "text-features",
        "baselines.text_features:main",
        "add a dense vector of every caption to a prepared data set; goes on after an interruption",
        "xmodal data text-features fisher data/f8k --vectors glove.6B.300d.txt",
    )
    parser.add_argument("kind", choices=["mean", "tfidf", "fisher"], help="mean or Fisher vector of words, or tf-idf")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--vectors", type=Path, help="mean, fisher: GloVe text file, or prefix of _words.txt and .npy")
    parser.add_argument("--whiten", choices=["none", "pca", "ica"], help="mean, fisher: turn the word vectors first")
    parser.add_argument("--components", type=int, help="fisher: of the mixture; 30 by default")
    parser.add_argument("--mixture", choices=["hglmm", "gmm"], help="fisher: hybrid (default) or Gaussian")
    parser.add_argument("--fit", choices=["words", "tokens"], help="fisher: each word once (default) or as it occurs")
    parser.add_argument("--pca", type=int, help="axes to keep, 0 for all; fisher: 6000 by default where longer")
    parser.add_argument("--missing", choices=["zeros", "error"], default="zeros", help="for captions of unknown words")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", help="the kind by default")


def add_extract(verbs) -> None:
    parser = verb(
        verbs,
        "extract",
        "verbs.extract:main",
        "features of pictures by an image network, as a prepared data set; goes on after an interruption",
        "xmodal extract data/holidays --backbone lite0 --out data/holidays-lite0",
    )
    parser.add_argument("source", type=Path, help="a prepared data set that has pictures, or a folder of photographs")
    parser.add_argument("--backbone", required=True, help="resnet18 to resnet152, vgg19, vgg19_fc7, lite0, lite2")
    parser.add_argument(
        "--weights",
        help='file with the network\'s weights, "package" for those of the Python package (lite0, lite2; the default '
        'there), or "random"',
    )
    parser.add_argument("--mode", default="global", help="global, 10crop or grid; global,grid for both")
    parser.add_argument("--side", type=int, help="pixels of the square that the network reads; its own by default")
    parser.add_argument("--resize", type=int, help="pixels of the short side before the crop; 8/7 of --side by default")
    parser.add_argument("--fit", choices=["centre", "squash"], help="crop the middle (default), or squash to a square")
    parser.add_argument("--mirror", action="store_true", help="mean over the picture and its mirror image")
    parser.add_argument(
        "--policy", choices=["refuse", "skip"], default="refuse", help="on pictures that cannot be read"
    )
    parser.add_argument("--dtype", choices=["float16", "float32"], default="float16", help="stored type")
    parser.add_argument("--batch-size", type=int, default=32, help="pictures at a time")
    parser.add_argument("--name", help="of the data set; that of the source by default")
    parser.add_argument("--out", type=Path, required=True)


def add_concepts(kinds) -> None:
    parser = verb(
        kinds,
        "concepts",
        "baselines.concepts:main",
        "add scores of the captions' most frequent words as a feature of every image to a prepared data set",
        "xmodal data concepts data/f8k --feature global",
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--feature", default="global", help="of which they are computed; regions: the largest of each")
    parser.add_argument("--count", type=int, help="number of concepts; 256 by default")
    parser.add_argument("--words", type=Path, help="your own: a concept a line, its name and further forms")
    parser.add_argument("--write-words", type=Path, help="only write that file, to edit it")
    parser.add_argument(
        "--model", type=Path, help="image.NAME.npz of another data set, to score by; nothing is trained"
    )
    parser.add_argument("--folds", type=int, default=1, help="score each training image by classifiers of other folds")
    parser.add_argument("--epochs", type=int, default=15, help="most epochs; dev picks one")
    parser.add_argument("--patience", type=int, default=3, help="epochs without a lower loss on dev that end it")
    parser.add_argument("--lr", type=float, help="of Adam; 0.0003 by default, of regions 0.01")
    parser.add_argument("--decay", type=float, help="share that weights lose a step; 0.001 by default, of regions 0")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="concept")
