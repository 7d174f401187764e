//! The words in which the read side speaks of events: [`row`] is what is known of one without opening it, [`scan`] what is asked and what
//! it costs. Pure; it knows no index, no reader and no policy.

pub mod row;
pub mod scan;

pub use row::{Column, Pseudonym, Row};
pub use scan::{Access, Cost, Estimate, Filter, Meter, Scan, Stopped, Window};
