"""What each key of audit.json means, written into the file itself and into the page."""

# A dot stands for an object in another, [] for the members of a list. Objects by name or number end with `.*`.
KEYS = {
    "version": "of this layout",
    "command": "that was typed",
    "machine": "processor and cores",
    "window": "of the training configuration: observed and future frames, frame_interval and rows of the dataset, horizon in control "
    "steps, anchor_interval (rows from one window to the next), repeat_first and repeat_last (whether windows beyond the ends are samples)",
    "kinds.*": "every kind of fault that is looked for: severity (error: the episode goes into quarantine; warning; note: "
    "may be meant so) and what it means",
    "keys.*": "this list",
    "datasets[].name": "of the source in the configuration",
    "datasets[].problem": "why it cannot be opened, and then what needs an open dataset is left out; else null",
    "datasets[].root": "folder or file",
    "datasets[].robot": "its name",
    "datasets[].fingerprint": "SHA-256 of its files without the videos; the quarantine is valid for this state of the dataset",
    "datasets[].listed": "episodes in its files",
    "datasets[].episodes": "those that can be opened",
    "datasets[].skipped.*": "why the others cannot, by episode",
    "datasets[].frames": "rows of all episodes",
    "datasets[].hours": "frames at the dataset's rate",
    "datasets[].frames_per_second": "as the dataset says",
    "datasets[].control_hz": "actions per second, as the dataset says",
    "datasets[].timestamps": "rows per second as timestamps tell: median, min, max over episodes; null without timestamps",
    "datasets[].cameras": "those that are read: name, height and width in pixels",
    "datasets[].actions": "names of an action's dimensions",
    "datasets[].proprio": "names of a state's dimensions",
    "datasets[].lengths": "of episodes in rows: min, p5, median, p95, max, and a histogram (counts, edges)",
    "datasets[].samples.*": "what one pass draws from training, validation and quarantined episodes, and unlabelled ones, which the policy "
    "for captions leaves out: stage_1 and stage_2 samples, full windows (without a repeated frame), episodes",
    "datasets[].instructions": "coverage in [0, 1], episodes_without, number of different sentences and tasks, sentences by language",
    "datasets[].dimensions.*": "of actions and proprio, for each dimension: name, min, max, mean, std, at_limit (share of rows at their "
    "episode's limits), and a histogram (range; counts, of which the first and last are below and above it)",
    "datasets[].relations": "which state moves with which action: with its value (mode delta) or its change (absolute), sign 1 or -1",
    "datasets[].action_lag_rows": "rows from an action to the motion that it causes, usually; null if no state follows an action",
    "datasets[].usual_idle_rows": "rows without motion at head and tail, usually",
    "datasets[].throughput": "episodes read now and kept from before, seconds, frames per second, frames per second of one core's work",
    "datasets[].counts.*": "findings by kind",
    "datasets[].errors": "findings of that severity",
    "datasets[].warnings": "likewise",
    "datasets[].quarantined": "episodes with an error",
    "datasets[].findings": "kind, severity, episode (null: the whole dataset), text; at most 1,000 of each kind",
}
