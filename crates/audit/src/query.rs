//! The words in which the read side speaks of events: [`row`] is what is known of one without opening it, [`scan`] what is asked and what
//! it costs, [`reduce`] what is made of the answer. Pure; it knows no index, no reader and no policy.

pub mod reduce;
pub mod row;
pub mod scan;

pub use reduce::{Group, Reduce, Reduced, Standing};
pub use row::{Column, Pseudonym, Row};
pub use scan::{Access, Cost, Estimate, Filter, Meter, Scan, Stopped, Window};
