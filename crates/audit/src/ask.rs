//! Questions about events: from a caller and what it asks to an answer, each step on the record.

pub mod record;
