//! One verb judges receipts, checkpoints and evidence, offline, under policies with witnesses.
