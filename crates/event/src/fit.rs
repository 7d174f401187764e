//! How long the fields of an event may be. What is longer is cut and named in `cut_fields`: the record in the body has
//! it whole.

use crate::collected::Event;
use crate::v1::{Actor, Label, Source};

/// The longest text of a field in bytes: ids, ARNs and user agents fit; essays are in the body.
pub const MAX_TEXT_BYTES: usize = 512;

/// The most items of a repeated field: groups, addresses, resources, labels.
pub const MAX_ITEMS: usize = 32;

/// The longest chain of actors that act for one another; longer ones were not seen.
pub const MAX_CHAIN: usize = 4;

/// The most fields whose replacements are listed one by one; the body says whether there were more.
pub const MAX_REPLACED: usize = 64;

impl Event {
    /// Cuts every field to its limit, sorts the labels, and says in the core what was cut.
    pub(crate) fn fit(&mut self) {
        let mut cut = Cut::default();
        let core = &mut self.core;
        cut.text("event_id", &mut core.event_id);
        cut.text("tenant", &mut core.tenant);
        if let Some(Source { id, kind, instance, region }) = &mut core.source {
            [id, kind, instance, region].into_iter().for_each(|text| cut.text("source", text));
        }
        cut.text("action", &mut core.action);
        cut.text("result_code", &mut core.result_code);
        cut.text("request_id", &mut core.request_id);
        cut.items("resources", &mut core.resources, MAX_ITEMS);
        for resource in &mut core.resources {
            cut.text("resources", &mut resource.r#type);
            cut.text("resources", &mut resource.parent);
        }
        core.labels.sort_by(|one, other| one.key.cmp(&other.key));
        core.labels.dedup_by(|one, other| one.key == other.key);
        cut.items("labels", &mut core.labels, MAX_ITEMS);
        for Label { key, value } in &mut core.labels {
            cut.text("labels", key);
            cut.text("labels", value);
        }

        let identity = &mut self.identity;
        identity.actor.iter_mut().for_each(|actor| cut.actor("actor", actor));
        cut.items("on_behalf_of", &mut identity.on_behalf_of, MAX_CHAIN);
        identity.on_behalf_of.iter_mut().for_each(|actor| cut.actor("on_behalf_of", actor));
        cut.items("resources", &mut identity.resources, MAX_ITEMS);
        for resource in &mut identity.resources {
            cut.text("resources", &mut resource.id);
            cut.text("resources", &mut resource.name);
            cut.text("resources", &mut resource.version);
        }
        cut.texts("addresses", &mut identity.addresses);
        cut.text("user_agent", &mut identity.user_agent);
        cut.text("result_message", &mut identity.result_message);
        cut.text("decision_reason", &mut identity.decision_reason);

        let body = &mut self.body;
        body.replaced_elsewhere |= body.replaced.len() > MAX_REPLACED;
        body.replaced.truncate(MAX_REPLACED);
        for replaced in &mut body.replaced {
            // A cut path still says in which part of the record.
            shorten(&mut replaced.path);
        }
        self.core.cut_fields.extend(cut.0.into_iter().map(str::to_owned));
    }
}

/// The names of the fields that were cut, each once, in order.
#[derive(Default)]
struct Cut(Vec<&'static str>);

impl Cut {
    fn note(&mut self, name: &'static str) {
        if !self.0.contains(&name) {
            self.0.push(name);
        }
    }

    fn text(&mut self, name: &'static str, text: &mut String) {
        if shorten(text) {
            self.note(name);
        }
    }

    fn items<T>(&mut self, name: &'static str, items: &mut Vec<T>, most: usize) {
        if items.len() > most {
            items.truncate(most);
            self.note(name);
        }
    }

    fn texts(&mut self, name: &'static str, texts: &mut Vec<String>) {
        self.items(name, texts, MAX_ITEMS);
        texts.iter_mut().for_each(|text| self.text(name, text));
    }

    fn actor(&mut self, name: &'static str, actor: &mut Actor) {
        let Actor { id, name: of_actor, groups, session, auth_method, .. } = actor;
        [id, of_actor, session, auth_method].into_iter().for_each(|text| self.text(name, text));
        self.texts(name, groups);
    }
}

/// Cuts at the last character that ends within the limit, and says whether it did.
fn shorten(text: &mut String) -> bool {
    let is_longer = text.len() > MAX_TEXT_BYTES;
    if is_longer {
        text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES));
    }
    is_longer
}
