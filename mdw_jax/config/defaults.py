"""Every default, with a line on what it means. A config file sets only what differs from `base()`.

`mdw COMMAND --help` prints these comments beside the keys, and after them the choices of keys that name an option, from
`options.py`. Most of these also take `module:function`, see docs/extending.md.
"""

import functools

from ml_collections import ConfigDict, FrozenConfigDict


@functools.cache
def defaults() -> FrozenConfigDict:
    """`base()` to look values up in: it is made once, for that takes 10 ms, and checks of a sweep do it for each cell."""
    return FrozenConfigDict(base())


def base() -> ConfigDict:
    """The defaults. Sections are the stages of a run, in order."""
    c = ConfigDict()

    c.run = ConfigDict()  # where a run writes and what it compares
    c.run.dir = "runs/default"  # directory of everything that the run writes
    c.run.seed = 0  # seed of all random choices but those of data and noise
    c.run.presets = ("random", "infonce", "mdw", "full")  # rows of the table: see config/presets.py
    # Settings of single presets: "lors:distill.lr_images=0.03", or "lors@200:..." from 200 distilled pairs up.
    c.run.preset_overrides = ()

    c.data = ConfigDict()  # the data set; "", () and 0 stand for the reader's own default
    c.data.name = "scenes"  # data reader
    c.data.size = 32  # side of the square images, pixels; log-mels have data.mels and data.frames instead
    # how images that are not square become it; crop: their central square, as published towers; squash: all of it, scaled
    # by its sides apart, as published distillation code
    c.data.fit = "crop"
    c.data.stream = False  # decode training images when they are needed, for data that do not fit into memory
    c.data.train = 2000  # scenes, tones: number of training images (audio files) to generate
    c.data.val = 250  # scenes, tones: number of val images to generate
    c.data.test = 500  # scenes, tones: number of test images to generate
    c.data.seed = 0  # scenes, tones: seed of the generated set; esc50, data.captions: seed of the captions
    c.data.skew = 0.0  # scenes: chance that the first object of a training image is made red, for mdw fairness to find
    c.data.annotations = ""  # karpathy: JSON file; folder, audio: table of captions; folder: or a directory of x.jpg, x.txt
    c.data.val_annotations = ""  # folder, audio: table of the val split, where it has its own
    c.data.test_annotations = ""  # folder, audio: table of the test split, where it has its own
    c.data.train_list = ""  # folder, audio: file that lists the images of the training split, one in each line
    c.data.val_list = ""  # folder, audio: likewise of val
    c.data.test_list = ""  # folder, audio: likewise of test
    c.data.images = ""  # karpathy, folder, audio: directory, zip file or glob of the images (of the audio files)
    c.data.file_pattern = ""  # folder, audio: file name, with {} for the image column: "Y{}.wav", "{:012d}.jpg"
    c.data.sample_rate = 0  # audio, esc50: sample rate of the log-mels, Hz
    c.data.seconds = 0.0  # audio, esc50, tones: length of an audio excerpt, seconds
    c.data.mels = 0  # audio, esc50, tones: mel bands, the height of a log-mel
    c.data.frames = 0  # audio, esc50, tones: time frames, the width of a log-mel
    c.data.source = ""  # hf: Hub name or local directory; tfds: builder name or prepared directory; esc50: directory
    c.data.config = ""  # hf: configuration of the data set on the Hub
    c.data.revision = ""  # hf: revision of the data set on the Hub
    c.data.data_dir = ""  # tfds: directory in which data sets were prepared
    c.data.train_shards = ""  # webdataset: tar files of the training split, as in "train-{00000..00331}.tar"
    c.data.val_shards = ""  # webdataset: tar files of the val split
    c.data.test_shards = ""  # webdataset: tar files of the test split
    c.data.image_column = ""  # folder, audio, hf, tfds: column (feature) of the image or its file name; "": by its name
    c.data.caption_columns = ""  # columns of captions, separated by commas; webdataset: fields of the JSON; "": by name
    c.data.caption_lines = ""  # folder, webdataset: what lines of a text are; split: a caption each; join: one caption
    c.data.key_column = ""  # hf, tfds: column that identifies an image
    c.data.attribute_columns = ""  # columns to keep for mdw fairness, separated by commas
    c.data.split_column = ""  # folder, audio, hf: column that holds the name of the split
    c.data.train_split = ""  # name of the training split in the source, several with +; esc50: folds, as in "1,2"
    c.data.val_split = ""  # likewise of val
    c.data.test_split = ""  # likewise of test
    c.data.delimiter = ""  # folder, audio: delimiter of a text table: a character, or tab, comma, pipe, semicolon
    c.data.quoting = ""  # folder, audio: quotation marks around cells of a text table; csv or none; "": found out
    c.data.encoding = ""  # folder, audio: encoding of a text table, such as latin-1; "": UTF-8
    c.data.holdout_val = 0  # training images to hold out as val, where the source has no val split
    c.data.holdout_test = 0  # training images to hold out as test, where the source has no test split
    c.data.holdout_seed = 0  # seed of the choice of held-out images
    c.data.near_duplicates = 0  # held-out splits: bits of 64 in which perceptual hashes of the same picture differ, plus 1
    c.data.on_error = ""  # images and captions that cannot be used; stop (the default); skip: leave them out, counted
    c.data.max_skipped = 0.0  # largest share of the images, and of the captions, that skip may leave out; 0: 0.05
    c.data.cache = ""  # webdataset: directory of the shards' index (default: inside run.dir); hf: the library's cache
    c.data.limit = 0  # keep the first n images of each split; 0: all
    c.data.captions = ""  # degrade training captions, for studies of noise; "": do not
    c.data.captions_rate = 0.4  # fraction of the training captions to degrade

    c.noise = ConfigDict()  # mismatched pairs in the training split
    # how pairs are mismatched; image: as RCL and DECL do; caption: as NCR does; natural: pairs as they come; "": natural,
    # but image for generated data (scenes, tones) and beside noise.file
    c.noise.protocol = ""
    # eta, fraction of pairs to mismatch; natural: the fraction assumed, 0 if unknown; -1: 0.4, natural and none: 0
    c.noise.rate = -1.0
    c.noise.seed = 0  # seed of the draw
    c.noise.estimate = False  # estimate the rate, as natural noise always does; this trains two more networks
    c.noise.file = ""  # noise file (.npz) or NCR/RCL index (.npy) to use instead of a draw

    c.filter = ConfigDict()  # dropping of training pairs before anything else of a preset sees them
    # what pairs are dropped by, the lowest first; "": nothing is dropped; cosine: of InfoNCE experts of all pairs;
    # dtcl_cosine: of the experts of this work; neg_clip_loss: of InfoNCE experts; closed_form: excess cosine, no experts
    c.filter.score = ""
    c.filter.drop = 0.0  # share of the pairs to drop; 0: the noise rate, estimated where it is unknown

    c.text = ConfigDict()  # features of captions
    c.text.encoder = "bow"  # text encoder; transformer: BERT, DistilBERT or CLIP
    c.text.train = False  # transformer: train it with the text head; distilled texts are then embedded tokens
    c.text.path = ""  # precomputed: feature file; transformer: model directory or Hub name
    c.text.dim = 384  # bow: width of the features
    c.text.pooling = "mean"  # transformer: pooling of token features; CLIP has only native
    c.text.max_tokens = 64  # transformer: longest caption, tokens; longer ones are truncated
    c.text.seed = 0  # bow: seed of the random projection
    c.text.dtype = "float32"  # type in which features are kept, on the disk and in memory; float16 is half of it, rounded

    c.model = ConfigDict()  # the dual encoder
    c.model.tower = "convnet"  # image tower
    c.model.weights = ""  # mobilenet: mobilenet_v2, mobilenet_v1_0.25, a .q8.npz; others: .safetensors, directory, Hub name
    c.model.mode = "full"  # what is trained; full: the backbone too (VLD, LoRS); projection: two heads (RepBlend)
    c.model.dim = 256  # width of the shared embedding space, where there is an image head
    c.model.image_head = False  # full mode: add a projection head to the image branch
    c.model.patches = (4, 2, 2)  # convnet: patch side of each stage, pixels of that stage
    c.model.widths = (64, 128, 128)  # convnet: channels of each stage
    c.model.vit_patch = 16  # vit: patch side, pixels
    c.model.vit_width = 128  # vit: width
    c.model.vit_depth = 4  # vit: layers
    c.model.vit_heads = 4  # vit: attention heads
    c.model.pretrain_epochs = 0  # convnet: epochs of pretraining on a disjoint generated set; 0: from scratch
    c.model.pretrain_images = 6000  # convnet: images of that set
    c.model.dtype = "float32"  # type in which the image tower computes; bfloat16 is for accelerators
    c.model.feature_dtype = "float32"  # projection mode: type in which features of images are kept, likewise
    c.model.tau = 0.07  # softmax temperature

    c.experts = ConfigDict()  # training of the experts
    c.experts.recipe = "dtcl"  # one name for a set of the choices below: see config/recipes.py
    c.experts.count = 4  # number of experts; each is a pair of networks with two trajectories
    c.experts.epochs = 6  # epochs of each expert
    c.experts.closed_form = False  # begin with a closed form (docs/method.md, 2.7): it divides the pairs and teaches first
    # what networks start from, those aside whose paths are matched; closed_form: heads that compute the closed form, which
    # stay the expert where no epoch is better on val; auto: so where experts.closed_form is set and both heads see frozen
    # features, else random
    c.experts.init = "random"
    c.experts.teacher_count = 0  # experts of a first generation, which teaches the others from the start; 0: none
    c.experts.teacher_epochs = 6  # epochs of the first generation
    # epochs of a last generation, taught by the experts, whose paths distillation matches: plain SGD, which a student's few
    # steps can follow; 0: the experts' own paths are matched
    c.experts.trajectory_epochs = 0
    c.experts.trajectory_lr = 0.1  # its learning rate
    c.experts.batch = 128  # pairs per step
    c.experts.lr = 0.5  # learning rate (SGD)
    c.experts.lr_with_teachers = 0.15  # learning rate of experts with teachers; low, because guidance has large gradients
    c.experts.lr_infonce = 0.1  # learning rate of recipes with InfoNCE on all pairs; low, because it has large gradients
    c.experts.optimizer = "sgd"  # optimizer of the experts
    c.experts.decay = "none"  # decay of the learning rate over the epochs of a generation
    c.experts.momentum = 0.0  # momentum of SGD
    c.experts.weight_decay = 0.0  # weight decay
    c.experts.augment = "none"  # augmentation of training images; shift and mask are for log-mels
    c.experts.dual = True  # network A divides the pairs for B and B for A; False: each for itself
    c.experts.warmup = 1  # epochs of the tolerant loss on all pairs before the first division
    # how clean and risky pairs are told apart; gmm: by their losses; oracle: by the truth; clean, tolerant: all pairs are
    # in that track; both: all pairs are in both
    c.experts.division = "gmm"
    c.experts.clean_loss = "gce"  # loss of the clean track
    c.experts.clean_q = 0.7  # its exponent, of losses that have one
    c.experts.tolerant_loss = "gce"  # loss of the tolerant track
    c.experts.tolerant_q = 0.7  # its exponent, of losses that have one
    c.experts.tolerant_weight = 1.0  # lambda, weight of the tolerant track
    c.experts.recovery_weight = 0.5  # mu, weight of recovery; 0: none, and risky pairs stay in the tolerant track
    c.experts.recovery_top_k = 5  # pseudo-captions from which a risky image draws
    # how they are found; exact: among all captions; ann: by an approximate index (pip install 'mdw-jax[ann]'); sample:
    # among 100,000 random captions, others each epoch; auto: exact up to 1e11 pairs of image and caption, then sample
    c.experts.recovery_search = "auto"
    c.experts.recovery_start = 2  # first epoch, counted from 0, with recovery and guidance
    c.experts.guidance_weight = 1.0  # nu, weight of guidance: all pairs learn the teacher's matching probabilities
    c.experts.guidance_tau = 0.07  # temperature of the teacher's matching probabilities
    c.experts.peers = 3  # other networks that divide, recover and guide together; 1: only the other of the pair
    c.experts.ema_decay = 0.99  # decay of the moving average of the weights, which is the expert; 0: the last weights
    c.experts.debias = False  # debiased loss (Proposition 4): minus eta times that of shuffled captions, over 1 - eta
    c.experts.rescale_step = False  # step size lr / (1 - eta) (Proposition 2)
    c.experts.store_dtype = "float32"  # type of the stored snapshots

    c.distill = ConfigDict()  # learning of the distilled sets
    c.distill.pairs = 100  # M, pairs of a distilled set
    c.distill.image_size = 0  # side of the stored images, pixels; models see them enlarged to data.size; 0: data.size
    c.distill.sets = 1  # number of distilled sets, which differ in their seeds
    c.distill.steps = 300  # outer steps
    # what the set matches; trajectories: the experts' paths; covariance: embeddings of real pairs (CovMatch), no experts
    c.distill.objective = "trajectories"
    c.distill.covariance_scale = 1.0  # covariance: rho, factor of the cross-covariance of the real pairs
    c.distill.mean_weight = 0.1  # covariance: lambda, weight of the distance of the means
    c.distill.network_steps = 50  # covariance: outer steps after which the network that embeds begins anew
    c.distill.inner_steps = 16  # S, steps of the student in an unroll
    c.distill.batch = 50  # distilled pairs per inner step, at most all of them
    # images of the set of which an image tower holds what its gradient needs at a time, for one more forward pass; 0: all
    c.distill.chunk = 50
    # what an image tower computes again when its gradient is due, rather than hold it; blocks: all inside its blocks, for
    # one more forward pass; for accelerators (on a CPU XLA undoes it)
    c.distill.remat = "none"
    c.distill.batches = "rounds"  # rounds: until the set is used up, without repeats; fresh: a new subset each step, as VLD
    c.distill.trajectories = 2  # trajectories matched in each outer step
    c.distill.max_start_epoch = 1  # the unroll starts at an epoch of U{0 .. max_start_epoch - 1}
    c.distill.expert_order = "drawn"  # experts to match; drawn: anew each outer step; cycled: in rounds, as published
    c.distill.match_epochs = 2  # m, the target is this many epochs after the start
    c.distill.gradient = "exact"  # gradient through the unroll; detached: as TESLA
    c.distill.inner_optimizer = "sgd"  # optimizer of the student in the unroll
    # how the matching losses of the two branches are combined; merged: as LoRS can; merged_data: as LoRS's code does, where
    # step sizes keep the gradients of separate
    c.distill.loss_merge = "separate"
    c.distill.loss = "probability"  # student's loss
    c.distill.logit_scale = 0.0  # factor of the cosines in the unroll; 0: 1 / model.tau, as everywhere else
    c.distill.correspondence = "full"  # form of P
    # P at the start; experts: as teachers see the pairs, who also give P anew at each checkpoint, for val to choose from
    c.distill.correspondence_init = "experts"
    # who teaches P; experts: the expert networks at their best epoch; matched: at the last epoch that is matched;
    # closed_form: the closed form; both: experts and closed form
    c.distill.correspondence_teacher = "experts"
    c.distill.correspondence_tau = (0.07, 0.1, 0.14)  # temperatures at which teachers are read, to choose from on val
    c.distill.rank = 10  # rank of the low-rank part of P
    c.distill.alpha = 1.0  # scale of the low-rank part of P
    # real pairs to start from; division: drawn from the clean side; division_top: the most probably clean ones;
    # k_means, herding, facility_location: by comparing the clean side in the experts' joint space; prototypes: no real
    # pairs, but the means of clusters of them, whose images are fitted to the mean features (docs/method.md, 5.7)
    c.distill.init = "division"
    c.distill.prototype_steps = 100  # prototypes: steps of that fit; 0: the real images nearest to the means
    c.distill.prototype_lr = 0.02  # prototypes: its learning rate
    c.distill.optimizer = "adam"  # optimizer of the distilled set; sgd: with momentum 0.5, as in published methods
    c.distill.decay = "cosine"  # decay of all learning rates over the outer steps
    c.distill.lr_images = 0.006  # learning rate of the images
    c.distill.pixel_units = "unit"  # what lr_images counts in; unit: pixels in [0, 1]; tower: as the tower normalizes
    c.distill.lr_texts = 0.02  # learning rate of the texts
    c.distill.lr_correspondence = 0.003  # learning rate of P
    c.distill.lr_inner_lr = 0.03  # learning rate of the student's step sizes, or of their logarithms
    c.distill.inner_lr_form = "log"  # how step sizes are learned; log: by their logarithm; linear: as published
    c.distill.inner_lr_image = 0.12  # a_v, initial step size of the student's image branch; too large a one diverges
    c.distill.inner_lr_text = 0.12  # a_t, initial step size of the student's text branch
    c.distill.clip_images = True  # keep pixels in [0, 1]
    c.distill.mixup = False  # RepBlend: mix features and texts of a mini-batch, with weights from Beta(1, 1)
    c.distill.augment = "none"  # augmentation of the distilled images, one draw per outer step
    c.distill.init_augment = "none"  # augmentation of the real images to start from, once, as published
    c.distill.ema_decay = 0.9  # decay of the moving average of the distilled set; 0: the last values
    c.distill.ceo = True  # weight pixel updates by Grad-CAM (CEO)
    c.distill.ceo_every = 10  # outer steps between two computations of these weights
    c.distill.ceo_top_k = 3  # texts per image whose Grad-CAM maps are averaged
    c.distill.ceo_beta = 0.5  # strength of the weights
    c.distill.checkpoint_every = 50  # outer steps between checkpoints, which are also the candidates to choose on val
    c.distill.restarts = 0  # times that a diverging set goes back to its last checkpoint, with smaller learning rates
    c.distill.restart_factor = 0.3  # factor of the four learning rates at each restart
    c.distill.on_divergence = "stop"  # what comes then; stop: an error; keep: the best candidate so far, as published

    c.evaluate = ConfigDict()  # training of students on the distilled sets
    c.evaluate.select_on = "val"  # split to select candidates and step sizes on; test: optimistic, as published
    c.evaluate.students = 5  # students per set
    # how they train; constant: until val is flat; the others: as published, with their own steps, evaluations and decay,
    # one of which always holds where test selects
    c.evaluate.schedule = "constant"
    c.evaluate.steps = 2400  # most steps of each student
    c.evaluate.patience = 3  # evaluations on val without a gain of 1 % after which students stop; 0: do all steps
    c.evaluate.every = 20  # steps between the first evaluations; later ones are a fifth of the steps done apart
    c.evaluate.batch = 128  # pairs per step
    c.evaluate.momentum = 0.9  # momentum of SGD
    c.evaluate.weight_decay = 5e-4  # weight decay
    c.evaluate.lr_scales = (0.3, 1.0, 3.0)  # factors of the learned step sizes; the middle one is tried first
    c.evaluate.grow = 2  # factors to try beyond each end of lr_scales, while the best lies there
    c.evaluate.lr = 0.3  # step size of students on sets without learned ones (coresets), before it is scaled
    c.evaluate.hard_targets = False  # also train students without the learned P and step sizes: column hard_r_mean
    c.evaluate.tower = ""  # image tower of the students; "": the tower of the distilled set
    c.evaluate.mode = "projection"  # mode of that other tower
    c.evaluate.tower_lr_scales = (0.01, 0.03, 0.1, 0.3, 1.0)  # factors to choose from with another tower
    c.evaluate.weights = ""  # weights of that other tower, as in model.weights

    c.watch = ConfigDict()  # writers of metrics, beside metrics.csv in run.dir
    c.watch.writers = ()  # metrics writers, separated by commas
    c.watch.project = "mdw-jax"  # wandb: project

    c.fairness = ConfigDict()  # for mdw fairness
    c.fairness.attributes = ()  # columns of the data set, and words:NAME of the word lists; (): the first six that fit
    c.fairness.words = ""  # TOML file of word lists; "": mdw_jax/analysis/fairness/words.toml
    c.fairness.neighbors = 1  # nearest real images (captions) that determine the group of a distilled one
    c.fairness.resamples = 2000  # bootstrap samples

    c.certify = ConfigDict()  # for mdw certify
    c.certify.rates = ()  # noise rates to certify, each with its own experts: 0,0.2,0.4; (): noise.rate alone
    c.certify.confidence = 0.9  # confidence of the upper bound on the clean risk
    c.certify.candidates = 4  # random candidate sets per pair, over which its retrieval is averaged
    c.certify.pairs = 4000  # training pairs to test for memorization

    c.export = ConfigDict()  # for mdw export
    c.export.formats = ("safetensors", "folder", "webdataset")  # formats to write
    c.export.license = ""  # license of the source data, such as cc-by-4.0 or unknown; required, for the dataset cards
    c.export.with_test = False  # also hand features of the test split on (not its photos), for train.py to score on
    c.export.neighbors = 1  # nearest real training captions to write beside each distilled text

    c.plan = ConfigDict()  # for mdw plan, which opens no weights, and no data whose sizes are stated here
    c.plan.images = 0  # training images; 0: count those of the data set
    c.plan.captions = 0  # training captions; 0: likewise
    c.plan.text_dim = 0  # width of the text features; 0: as the text encoder says
    c.plan.device = "here"  # device to plan for; here: this machine, measured for a second
    c.plan.devices = 1  # how many of them
    c.plan.price = 0.0  # price of a device for an hour, in any currency; 0: none is computed
    c.plan.utilization = 0.3  # fraction of the device's peak FLOP/s to expect; here: not used
    c.plan.compile = False  # compile the experts' and the outer step, to know their peak memory; takes minutes
    return c


def frozen_backbone() -> ConfigDict:
    """Two heads on a frozen, pretrained backbone: the settings that were best on Flickr8k (docs/results.md).

    The closed form divides the pairs and teaches a first generation of networks, which teaches the experts, which give
    the distilled set its P and teach the networks whose paths are matched.
    """
    c = base()
    c.model.mode = "projection"
    c.experts.closed_form = True
    c.experts.optimizer, c.experts.decay, c.experts.lr_with_teachers = "adam", "cosine", 2e-3
    c.experts.teacher_count, c.experts.teacher_epochs = 2, 4
    c.experts.count, c.experts.epochs = 4, 4
    c.experts.trajectory_epochs = 2
    c.experts.lr = 1.0  # of networks without teachers
    c.distill.init = "prototypes"
    c.distill.prototype_steps = 150
    return c


def published() -> ConfigDict:
    """The setting of published tables: 224 px, a trained NFNet-L0, frozen BERT features, twenty trajectories.

    The learning rates of this work are those found at 128 px (configs/studies/bench.md), with the unroll and step sizes
    of the published methods: nothing is measured at this scale yet.
    """
    c = base()
    c.run.presets = ("random", "vld", "lors", "mdw")
    c.data.size, c.data.fit = 224, "squash"
    c.text.encoder, c.text.path, c.text.pooling = "transformer", "google-bert/bert-base-uncased", "cls"
    c.model.tower, c.model.weights, c.model.mode = "nfnet_l0", "timm/nfnet_l0.ra2_in1k", "full"
    c.model.dtype = "bfloat16"  # not as published, which is float32 throughout, at twice the memory and more time
    c.experts.count, c.experts.epochs = 10, 10
    c.experts.augment = "rand_augment"
    c.experts.lr = c.experts.lr_infonce = 0.1
    c.experts.store_dtype = "bfloat16"
    c.distill.steps = 3000
    c.distill.inner_steps, c.distill.batch, c.distill.trajectories = 8, 20, 1
    c.distill.inner_lr_image = c.distill.inner_lr_text = 0.1
    c.distill.augment = "crop_flip"
    c.plan.text_dim, c.plan.device = 768, "h200"  # the data and the weights need not be there
    return c
