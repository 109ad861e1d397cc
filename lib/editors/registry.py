"""The editors that there are, and where each is found. A run is told by its own row alone, so that
a new editor leaves the runs of the others as they are."""

# What an edit leaves behind (the taxonomy of Yao et al., 2023), in the order of reports.
FAMILIES = (
    "weights edited", "adapter or patch routed", "memory beside the model", "hyper-network",
)  # fmt: skip
WEIGHTS, ROUTED, MEMORY, NETWORK = FAMILIES
# kind: (module, editor class, configuration class, family); imported when asked for
REGISTRY = {
    "melo": ("lib.editors.adapters.melo", "Melo", "MeloConfig", ROUTED),
    "comeba_hk": ("lib.editors.locate.comeba_hk", "ComebaHk", "ComebaHkConfig", ROUTED),
    "memit": ("lib.editors.locate.memit", "Memit", "MemitConfig", WEIGHTS),
    "alphaedit": ("lib.editors.locate.alphaedit", "AlphaEdit", "AlphaEditConfig", WEIGHTS),
    "rome": ("lib.editors.locate.rome", "Rome", "RomeConfig", WEIGHTS),
    "grace": ("lib.editors.memory.grace", "Grace", "GraceConfig", ROUTED),
    "wise": ("lib.editors.memory.wise", "Wise", "WiseConfig", ROUTED),
    "defer": ("lib.editors.memory.defer", "Defer", "DeferConfig", ROUTED),
    "elder": ("lib.editors.adapters.elder", "Elder", "ElderConfig", ROUTED),
    "elder_replayed": (
        "lib.editors.adapters.elder_replayed",
        "ElderReplayed",
        "ElderReplayedConfig",
        ROUTED,
    ),
    "lora": ("lib.editors.adapters.lora", "Lora", "LoraConfig", WEIGHTS),
    "malmen": ("lib.editors.hypernet.malmen", "Malmen", "MalmenConfig", NETWORK),
    "mend": ("lib.editors.hypernet.malmen", "Mend", "MendConfig", NETWORK),
    "rledit": ("lib.editors.hypernet.rledit", "RlEdit", "RlEditConfig", NETWORK),
    "ultraedit": ("lib.editors.hypernet.ultraedit", "UltraEdit", "UltraEditConfig", WEIGHTS),
    "serac": ("lib.editors.memory.serac", "Serac", "SeracConfig", MEMORY),
    "t_patcher": ("lib.editors.memory.t_patcher", "TPatcher", "TPatcherConfig", ROUTED),
    "wilke": ("lib.editors.locate.rome", "Wilke", "WilkeConfig", WEIGHTS),
    "ft": ("lib.editors.finetune", "FineTune", "FtConfig", WEIGHTS),
    "ft_l": ("lib.editors.finetune", "FtL", "FtLConfig", WEIGHTS),
    "ft_epochs": ("lib.editors.finetune", "FineTuneEpochs", "FtEpochsConfig", WEIGHTS),
}
