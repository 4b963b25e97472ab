"""Names of files, folders and plans that more than one command reads or writes."""

CONFIGURATION = "3d_fullres"  # nnU-Net's configuration, in all plans that this package writes

PRETRAIN_PLANS = "AlicePretrainPlans"
PREPROCESS_REPORT = f"{PRETRAIN_PLANS}_report.json"  # what became of each case
PREPROCESS_LOCK = f"{PRETRAIN_PLANS}.lock"
RUNS = f"AlicePretrain__{PRETRAIN_PLANS}__{CONFIGURATION}"  # folder of the pretrainings
ANATOMY = f"{PRETRAIN_PLANS}_anatomy"  # folder of the matcher and its index, beside the volumes
PARTNERS = "partners.npz"  # in it: which scans show the same places
COVERAGE = "coverage.json"  # in it: what each scan shows
COVERAGE_PICTURE = "coverage.png"
EMBED_CONFIG = "config.json"  # in it: the settings of the matcher's training

LOCK = "lock"  # held by the process that works in a folder
LATEST = "checkpoint_latest.pth"  # of a run that goes on
FINAL = "checkpoint_final.pth"  # of a run that has ended; nnU-Net's name, too
