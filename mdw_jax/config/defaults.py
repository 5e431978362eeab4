"""Every default, with a line on what it means. A config file says only what differs from `base()`."""


from ml_collections import ConfigDict


def base() -> ConfigDict:
    """The defaults. Sections are the stages of a run, in order."""
    c = ConfigDict()

    c.run = ConfigDict()
    c.run.dir = "runs/default"  # everything this run writes
    c.run.seed = 0  # every random choice derives from it
    c.run.presets = ("random", "infonce", "mdw", "full")  # rows of the table: see mdw_jax/presets.py

    # Settings of single presets, over all else: "lors:distill.lr_images=0.03", "lors@200:..." from 200 pairs up.
    c.run.preset_overrides = ()

    c.data = ConfigDict()
    # Of these a reader takes what it knows; "", () and 0 stand for its own defaults: see mdw_jax/data/.
    c.data.name = "scenes"  # scenes, karpathy, folder, hf, tfds, webdataset, tones, audio, esc50 or module:function
    c.data.size = 32  # image side, pixels; of sounds mels and frames say the shape
    c.data.stream = False  # decode training images when they are needed, for what does not fit into memory
    c.data.train = 2000  # scenes, tones: pictures (clips) to draw for each split
    c.data.val = 250
    c.data.test = 500
    c.data.seed = 0  # scenes, tones: which world; esc50: which captions
    c.data.skew = 0.0  # scenes: chance that a training picture's first object is made red, for mdw fairness to find
    c.data.annotations = ""  # karpathy: the .json or .json.gz file; folder, audio: a .csv, .tsv, .jsonl, .parquet
    c.data.val_annotations = ""  # folder, audio: tables of these splits, where each has its own
    c.data.test_annotations = ""
    c.data.images = ""  # karpathy, folder, audio: folder, zip file or glob of them (of the sounds)
    c.data.file_pattern = ""  # folder, audio: file names, {} the image column: "Y{}.wav"
    c.data.sample_rate = 0  # audio, esc50: samples a second of the log-mels
    c.data.seconds = 0.0  # audio, esc50, tones: of a clip
    c.data.mels = 0  # audio, esc50, tones: height of a log-mel
    c.data.frames = 0  # audio, esc50, tones: its width
    c.data.source = ""  # hf: Hub name or local folder; tfds: builder name or prepared folder; esc50: folder
    c.data.config = ""  # hf: the data set's own configuration
    c.data.revision = ""  # hf
    c.data.data_dir = ""  # tfds: where data sets were prepared
    c.data.train_shards = ""  # webdataset: tar files, as in "train-{00000..00331}.tar"
    c.data.val_shards = ""
    c.data.test_shards = ""
    c.data.image_column = ""  # folder, audio, hf, tfds: column (feature) of image, captions, what else to keep
    c.data.caption_columns = ""  # several joined by commas; webdataset: a field of the JSON
    c.data.key_column = ""  # hf, tfds: what names an image
    c.data.attribute_columns = ""
    c.data.split_column = ""  # folder, audio: the column that says the split
    c.data.train_split = ""  # folder, audio, hf, tfds: what the source calls its splits; esc50: folds, as in "1,2"
    c.data.val_split = ""
    c.data.test_split = ""
    c.data.delimiter = ""  # folder, audio: of a CSV file
    c.data.holdout_val = 0  # training images to take for val, where the source has none
    c.data.holdout_test = 0
    c.data.holdout_seed = 0
    c.data.skip_broken = False  # leave out images that cannot be decoded, and count them
    c.data.cache = ""  # webdataset: index of the shards (default: in run.dir); hf: the library's cache
    c.data.limit = 0  # keep the first n images of each split (0: all)
    c.data.captions = ""  # generic or truncated: make a share of the training captions say less, for noise studies
    c.data.captions_rate = 0.4  # that share

    c.noise = ConfigDict()
    c.noise.protocol = "image"  # image (RCL, DECL), caption (NCR), similar (look-alikes), none, natural: as the data come
    c.noise.rate = 0.4  # eta: fraction of pairs to mismatch (natural: believed to be mismatched, 0 if unknown)
    c.noise.seed = 0
    c.noise.estimate = False  # estimate the rate, as natural noise always does: two more networks are trained
    c.noise.file = ""  # use this noise file (.npz) or NCR/RCL index (.npy) instead of drawing one

    c.text = ConfigDict()
    c.text.encoder = "bow"  # bow, precomputed or transformer (BERT, DistilBERT, CLIP)
    c.text.train = False  # transformer: train it too; distilled texts are then embedded tokens
    c.text.path = ""  # precomputed: the feature file; transformer: a model folder or Hub name
    c.text.dim = 384  # bow: feature width
    c.text.pooling = "mean"  # transformer: mean, cls or native (CLIP has this alone)
    c.text.max_tokens = 64  # transformer: truncation
    c.text.seed = 0  # bow: which random projection

    c.model = ConfigDict()
    c.model.tower = "convnet"  # convnet, vit (from scratch), mobilenet, one of PRETRAINED above, or module:function
    c.model.weights = ""  # mobilenet: the .q8.npz file; PRETRAINED: a .safetensors file, a folder or a Hub model's name
    c.model.mode = "full"  # full (VLD, LoRS: the backbone moves) or projection (RepBlend: two heads move)
    c.model.dim = 256  # width of the shared space, where there is an image head
    c.model.image_head = False  # full mode: add a projection head to the image branch
    c.model.patches = (4, 2, 2)  # convnet: patch side of each stage
    c.model.widths = (64, 128, 128)  # convnet: channels of each stage
    c.model.vit_patch = 16  # vit: patch side, pixels
    c.model.vit_width = 128
    c.model.vit_depth = 4
    c.model.vit_heads = 4
    c.model.pretrain_epochs = 0  # convnet: first learn to name the factors of another world of scenes (0: from scratch)
    c.model.pretrain_images = 6000
    c.model.dtype = "float32"  # in which the image tower computes: float32, or bfloat16 (on accelerators)
    c.model.tau = 0.07  # softmax temperature

    c.experts = ConfigDict()
    c.experts.recipe = "dtcl"  # one word for the choices below: see RECIPES in mdw_jax/config.py
    c.experts.count = 4  # experts; each is two networks, so twice as many trajectories
    c.experts.epochs = 6
    c.experts.teacher_count = 0  # experts of a first generation that teaches the others from their first step; 0: none
    c.experts.teacher_epochs = 6
    c.experts.batch = 128
    c.experts.lr = 0.5  # SGD
    c.experts.lr_with_teachers = 0.15  # of experts that scouts teach: guidance is as steep as InfoNCE
    c.experts.lr_infonce = 0.1  # used instead by recipes that are InfoNCE on all pairs: its gradient is far steeper
    c.experts.momentum = 0.0
    c.experts.weight_decay = 0.0
    c.experts.augment = "none"  # full mode: none, flip, crop_flip; log-mels: shift, mask, shift_mask
    c.experts.dual = True  # A divides for B and B for A; False: each for itself
    c.experts.warmup = 1  # epochs of the tolerant loss on all pairs before the first division
    c.experts.division = "gmm"  # gmm; oracle (truth known); tolerant, clean or both: all pairs in that track
    c.experts.clean_loss = "gce"  # infonce, gce, mae, rince, ccl_tan, acl
    c.experts.clean_q = 0.7  # exponent of gce, rince, acl
    c.experts.tolerant_loss = "gce"
    c.experts.tolerant_q = 0.7
    c.experts.tolerant_weight = 1.0  # lambda
    c.experts.recovery_weight = 0.5  # mu; 0 turns recovery off and risky pairs stay in the tolerant track
    c.experts.recovery_top_k = 5  # pseudo-captions a risky image draws from
    c.experts.recovery_start = 2  # first epoch (from 0) that recovers
    c.experts.guidance_weight = 1.0  # nu: all pairs learn the teacher's matching probabilities, from recovery_start on
    c.experts.guidance_tau = 0.07  # temperature of what the teacher says
    c.experts.peers = 3  # other networks that divide, recover and guide together (1: the peer alone)
    c.experts.ema_decay = 0.99  # weights are averaged over steps, and the average is the expert; 0: the last weights
    c.experts.debias = False  # Fact D: subtract eta times the loss under re-shuffled captions, divide by 1 - eta
    c.experts.rescale_step = False  # Fact B: step size lr / (1 - eta)
    c.experts.store_dtype = "float32"  # of the snapshots: float32 or bfloat16

    c.distill = ConfigDict()
    c.distill.pairs = 100  # M
    c.distill.sets = 1  # distilled sets, different seeds
    c.distill.steps = 300  # outer steps
    c.distill.inner_steps = 16  # S
    c.distill.batch = 50  # distilled pairs an inner step
    c.distill.trajectories = 2  # trajectories matched at each outer step
    c.distill.max_start_epoch = 1  # start ~ U{0 .. max_start_epoch - 1}
    c.distill.match_epochs = 2  # m: the target is this many epochs after the start
    c.distill.gradient = "exact"  # exact or detached (TESLA)
    c.distill.loss_merge = "separate"  # separate or merged branch losses
    c.distill.loss = "probability"  # probability (P as matching probabilities), wbce, bce, nce, cwcl, kl, mse
    c.distill.correspondence = "lowrank"  # identity, full or lowrank
    c.distill.rank = 10
    c.distill.alpha = 1.0  # scale of the low-rank part
    c.distill.init = "division"  # real pairs to start from: random, or division (drawn from the clean side)
    c.distill.optimizer = "adam"  # adam or sgd (momentum 0.5, as the peers')
    c.distill.decay = "cosine"  # of all learning rates over the outer steps: cosine or none
    c.distill.lr_images = 0.006
    c.distill.lr_texts = 0.02
    c.distill.lr_correspondence = 0.003
    c.distill.lr_inner_lr = 0.03  # on the logarithm of the student step sizes
    c.distill.inner_lr_image = 0.12  # initial student step sizes a_v, a_t: too large, and the first students diverge
    c.distill.inner_lr_text = 0.12
    c.distill.clip_images = True  # keep pixels in [0, 1]
    c.distill.mixup = False  # RepBlend: mix image representations and texts of a mini-batch, weight ~ Beta(1, 1)
    c.distill.augment = "none"  # as for experts: one draw an outer step
    c.distill.ema_decay = 0.9  # of the distilled set; 0 turns it off
    c.distill.ceo = True  # Grad-CAM weights on the pixel updates
    c.distill.ceo_every = 10  # outer steps between refreshes
    c.distill.ceo_top_k = 3
    c.distill.ceo_beta = 0.5
    c.distill.checkpoint_every = 50  # outer steps between checkpoints, which are also candidates chosen on val
    c.distill.restarts = 0  # times that a set that diverges goes back to its last checkpoint, with smaller steps
    c.distill.restart_factor = 0.3  # by which each restart multiplies the four learning rates

    c.evaluate = ConfigDict()
    c.evaluate.select_on = "val"  # honest (all choices on val) or peer (best of the test evaluations: optimistic)
    c.evaluate.students = 5
    c.evaluate.steps = 200
    c.evaluate.every = 20  # steps between evaluations
    c.evaluate.batch = 128
    c.evaluate.momentum = 0.9
    c.evaluate.weight_decay = 5e-4
    c.evaluate.lr_scales = (0.1, 0.3, 1.0)  # of the learned step sizes, chosen on val: momentum makes 1 too large
    c.evaluate.lr = 0.3  # what they scale for sets without learned step sizes (coresets)
    c.evaluate.tower = ""  # another tower for the students than the set was distilled on, as in model.tower
    c.evaluate.mode = "projection"  # of that tower: projection or full
    c.evaluate.tower_lr_scales = (0.01, 0.03, 0.1, 0.3, 1.0)  # with another tower, instead of lr_scales
    c.evaluate.weights = ""  # of that tower, as in model.weights

    c.watch = ConfigDict()  # where metrics go while a run is under way; metrics.csv in run.dir is always there
    c.watch.writers = ()  # tensorboard, wandb
    c.watch.project = "mdw-jax"  # of W&B

    c.fairness = ConfigDict()  # for mdw fairness
    c.fairness.attributes = ()  # columns of the data set, and words:NAME of the lists; none: the first six that fit
    c.fairness.words = ""  # a TOML file of word lists (default: mdw_jax/words/attributes.toml)
    c.fairness.neighbors = 1  # real images (captions) that say of which group a distilled one is
    c.fairness.resamples = 2000  # of the bootstrap

    c.certify = ConfigDict()  # for mdw certify
    c.certify.rates = ()  # noise rates to certify, each with experts of its own: 0,0.2,0.4; none: noise.rate alone
    c.certify.confidence = 0.9  # of the upper bound on the clean risk
    c.certify.candidates = 4  # sets of candidates among which a pair is to be found, averaged
    c.certify.pairs = 4000  # training pairs to look for what was learned by heart

    c.export = ConfigDict()  # for mdw export
    c.export.formats = ("safetensors", "folder", "webdataset")  # and parquet
    c.export.license = ""  # of the source data, as cc-by-4.0 or unknown: must be given, and stands on the dataset cards
    c.export.neighbors = 1  # real training captions that are written beside each distilled text

    c.plan = ConfigDict()  # for mdw plan alone, which opens no data and no weights
    c.plan.images = 0  # training images
    c.plan.captions = 0  # training captions
    c.plan.text_dim = 0  # width of the text features
    c.plan.device = "h200"  # one of DEVICES in mdw_jax/plan.py
    c.plan.utilization = 0.3  # share of the device's peak to reckon with
    c.plan.compile = True  # compile both steps, for their peak memory
    return c


def published() -> ConfigDict:
    """The setting of the peers' tables: 224 px, NFNet-L0 that moves, frozen BERT features, twenty trajectories.

    Of ours, learning rates are those found at 128 px (configs/studies/bench.md) with the peers' unroll and step sizes:
    nothing is measured at this scale yet.
    """
    c = base()
    c.run.presets = ("random", "vld", "lors", "mdw")
    c.data.size = 224
    c.text.encoder, c.text.path, c.text.pooling = "transformer", "google-bert/bert-base-uncased", "cls"
    c.model.tower, c.model.weights, c.model.mode = "nfnet_l0", "timm/nfnet_l0.ra2_in1k", "full"
    c.model.dtype = "bfloat16"
    c.experts.count, c.experts.epochs = 10, 10
    c.experts.lr = c.experts.lr_infonce = 0.1
    c.experts.store_dtype = "bfloat16"
    c.distill.steps = 3000
    c.distill.inner_steps, c.distill.batch, c.distill.trajectories = 8, 20, 1
    c.distill.inner_lr_image = c.distill.inner_lr_text = 0.1
    c.distill.augment = "crop_flip"
    c.plan.text_dim = 768
    return c


