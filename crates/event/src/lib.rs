//! Audit events: what happened, said by its source, in a form that can be committed to, signed and proven. Pure.
