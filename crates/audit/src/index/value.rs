//! The bytes of a row beside its key. Texts and pseudonyms are numbers of the index's dictionary; numbers have 7 bits a byte, the lowest
//! first. docs/formats/audit-index.md.

use std::sync::Arc;

use epigraph_core::LeafIndex;
use epigraph_event::v1::{ActorType, Category, Operation, Result as Outcome, Severity};

use super::IndexError;
use super::word::Word;
use crate::query::row::{Pseudonym, Row, Touched, TraceId};

/// A row's request id is a UUID, of 16 bytes in the place of its text.
const UUID: u8 = 1;
/// The 16 bytes of a trace id come before the request id.
const TRACE: u8 = 2;

/// An entry of the dictionary.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Symbol {
    Text(Arc<str>),
    Pseudonym(Pseudonym),
}

impl From<Word<'_>> for Symbol {
    fn from(word: Word<'_>) -> Symbol {
        match word {
            Word::Text(text) => Symbol::Text(Arc::clone(text)),
            Word::Pseudonym(pseudonym) => Symbol::Pseudonym(*pseudonym),
        }
    }
}

impl Symbol {
    pub(super) fn word(&self) -> Word<'_> {
        match self {
            Symbol::Text(text) => Word::Text(text),
            Symbol::Pseudonym(pseudonym) => Word::Pseudonym(pseudonym),
        }
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Symbol> {
        match bytes.split_first()? {
            (0, text) => Some(Symbol::Text(std::str::from_utf8(text).ok()?.into())),
            (1, pseudonym) => Some(Symbol::Pseudonym(Pseudonym::from_bytes(pseudonym.try_into().ok()?))),
            _ => None,
        }
    }
}

/// The words of a row, in the order in which those that are new are given a number: the tenant first.
pub(super) fn words(row: &Row) -> impl Iterator<Item = Word<'_>> {
    let texts = [&row.tenant, &row.source, &row.source_kind, &row.action, &row.result_code];
    let who = [&row.actor, &row.actor_name, &row.session, &row.address].into_iter().flatten();
    let things = row.resources.iter().flat_map(|Touched { id, name, .. }| id.iter().chain(name));
    let pseudonyms = who.chain(&row.on_behalf_of).chain(things).map(Word::Pseudonym);
    let kinds = row.resources.iter().map(|Touched { kind, .. }| kind);
    texts.map(Word::Text).into_iter().chain(pseudonyms).chain(kinds.map(Word::Text))
}

/// The bytes of a row. `number` gives the number of a word.
pub(super) fn encode<E>(row: &Row, mut number: impl FnMut(Word<'_>) -> Result<u32, E>) -> Result<Vec<u8>, E> {
    let mut out = Vec::with_capacity(64);
    put(&mut out, zigzag(row.leaf.get().wrapping_sub(row.slot) as i64));
    let occurred_s = row.occurred_at_ns.div_euclid(1_000_000_000);
    put(&mut out, zigzag((row.ingested_s as i64).wrapping_sub(occurred_s)));
    for code in [
        row.category as i32,
        row.operation as i32,
        row.result as i32,
        row.severity as i32,
        row.actor_type as i32,
    ] {
        put(&mut out, code as u64);
    }
    put(&mut out, u64::from(row.data_classes));
    for text in [&row.source, &row.source_kind, &row.action, &row.result_code] {
        put(&mut out, u64::from(number(Word::Text(text))?));
    }
    // A pseudonym that there is not is 0.
    let mut some = |out: &mut Vec<u8>, pseudonym: &Option<Pseudonym>| {
        let number = pseudonym.as_ref().map(|it| number(Word::Pseudonym(it))).transpose()?;
        put(out, number.map_or(0, |number| u64::from(number) + 1));
        Ok(())
    };
    for one in [&row.actor, &row.actor_name, &row.session, &row.address] {
        some(&mut out, one)?;
    }
    put(&mut out, row.on_behalf_of.len() as u64);
    for one in &row.on_behalf_of {
        some(&mut out, &Some(*one))?;
    }
    put(&mut out, row.resources.len() as u64);
    for Touched { id, name, .. } in &row.resources {
        some(&mut out, id)?;
        some(&mut out, name)?;
    }
    for Touched { kind, .. } in &row.resources {
        put(&mut out, u64::from(number(Word::Text(kind))?));
    }
    let uuid = uuid(&row.request_id);
    let flags = if uuid.is_some() { UUID } else { 0 } | if row.trace_id.is_some() { TRACE } else { 0 };
    out.push(flags);
    out.extend_from_slice(row.trace_id.as_ref().map_or(&[][..], |trace| &trace.as_bytes()[..]));
    match uuid {
        Some(uuid) => out.extend_from_slice(&uuid.to_be_bytes()),
        None => out.extend_from_slice(row.request_id.as_bytes()),
    }
    Ok(out)
}

/// The row of a key's time and leaf, and of these bytes. `symbol` gives the entry of a number.
pub(super) fn decode(
    ((occurred_at_ns, leaf), tenant): ((i64, LeafIndex), Arc<str>),
    bytes: &[u8],
    mut symbol: impl FnMut(u32) -> Result<Symbol, IndexError>,
) -> Result<Row, IndexError> {
    let damaged = || IndexError::Damaged(format!("the row of leaf {}", leaf.get()));
    let mut rest = bytes;
    let mut number = || take(&mut rest).ok_or_else(damaged);
    let slot = leaf.get().wrapping_sub(unzigzag(number()?) as u64);
    let occurred_s = occurred_at_ns.div_euclid(1_000_000_000);
    let ingested_s = unzigzag(number()?).wrapping_add(occurred_s) as u64;
    let mut code = || i32::try_from(number()?).map_err(|_| damaged());
    let [category, operation, result, severity, actor_type] = [code()?, code()?, code()?, code()?, code()?];
    let data_classes = u32::try_from(number()?).map_err(|_| damaged())?;
    let mut text = |number: u64| match symbol(u32::try_from(number).map_err(|_| damaged())?)? {
        Symbol::Text(text) => Ok(text),
        Symbol::Pseudonym(_) => Err(damaged()),
    };
    let [source, source_kind, action, result_code] =
        [text(number()?)?, text(number()?)?, text(number()?)?, text(number()?)?];
    let mut pseudonyms = [number()?, number()?, number()?, number()?].to_vec();
    let behind = number()?;
    for _ in 0..behind {
        pseudonyms.push(number()?);
    }
    let touched = number()?;
    for _ in 0..touched.saturating_mul(2) {
        pseudonyms.push(number()?);
    }
    let mut kinds = Vec::new();
    for _ in 0..touched {
        kinds.push(text(number()?)?);
    }
    let mut pseudonyms = pseudonyms.into_iter().map(|number| {
        let Some(number) = number.checked_sub(1) else { return Ok(None) };
        match symbol(u32::try_from(number).map_err(|_| damaged())?)? {
            Symbol::Pseudonym(pseudonym) => Ok(Some(pseudonym)),
            Symbol::Text(_) => Err(damaged()),
        }
    });
    let mut next = || pseudonyms.next().ok_or_else(damaged)?;
    let [actor, actor_name, session, address] = [next()?, next()?, next()?, next()?];
    let mut on_behalf_of = Vec::new();
    for _ in 0..behind {
        on_behalf_of.push(next()?.ok_or_else(damaged)?);
    }
    let mut resources = Vec::new();
    for kind in kinds {
        resources.push(Touched { kind, id: next()?, name: next()? });
    }
    let (flags, mut ids) = rest.split_first().ok_or_else(damaged)?;
    let mut trace_id = None;
    if flags & TRACE != 0 {
        let (trace, rest) = ids.split_at_checked(TraceId::LEN).ok_or_else(damaged)?;
        (trace_id, ids) = (Some(TraceId::of(trace).ok_or_else(damaged)?), rest);
    }
    let request_id: Arc<str> = match flags & !TRACE {
        UUID => uuid_text(u128::from_be_bytes(ids.try_into().map_err(|_| damaged())?)).into(),
        0 => std::str::from_utf8(ids).map_err(|_| damaged())?.into(),
        _ => return Err(damaged()),
    };
    Ok(Row {
        leaf,
        slot,
        occurred_at_ns,
        ingested_s,
        tenant,
        source,
        source_kind,
        category: Category::try_from(category).unwrap_or_default(),
        operation: Operation::try_from(operation).unwrap_or_default(),
        action,
        result: Outcome::try_from(result).unwrap_or_default(),
        result_code,
        severity: Severity::try_from(severity).unwrap_or_default(),
        actor_type: ActorType::try_from(actor_type).unwrap_or_default(),
        actor,
        actor_name,
        session,
        on_behalf_of,
        address,
        resources,
        request_id,
        trace_id,
        data_classes,
    })
}

pub(super) fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

pub(super) fn take(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, left) = rest.split_first()?;
        *rest = left;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn zigzag(number: i64) -> u64 {
    (number << 1 ^ number >> 63) as u64
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

/// The number of a UUID in its one usual form: anything else is kept as text.
fn uuid(text: &str) -> Option<u128> {
    let text: &[u8; 36] = text.as_bytes().try_into().ok()?;
    let mut number = 0_u128;
    for (at, byte) in text.iter().enumerate() {
        let digit = match byte {
            b'-' if matches!(at, 8 | 13 | 18 | 23) => continue,
            _ if matches!(at, 8 | 13 | 18 | 23) => return None,
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => return None,
        };
        number = number << 4 | u128::from(digit);
    }
    Some(number)
}

fn uuid_text(uuid: u128) -> String {
    let hex = format!("{uuid:032x}");
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back() {
        for number in [0, 1, 127, 128, 300, u64::MAX - 1, u64::MAX] {
            let mut out = Vec::new();
            put(&mut out, number);
            assert_eq!(take(&mut &out[..]), Some(number));
            assert_eq!(zigzag(unzigzag(number)), number);
            assert_eq!(take(&mut &out[..out.len() - 1]), None, "{number} cut off");
        }
    }

    #[test]
    fn only_a_uuid_in_its_usual_form_is_kept_as_one() {
        let usual = "1af58177-d743-4c94-ac1d-014721ed9b94";
        assert_eq!(uuid(usual).map(uuid_text).as_deref(), Some(usual));
        for other in [
            "",
            "1AF58177-D743-4C94-AC1D-014721ED9B94",
            "1af58177d7434c94ac1d014721ed9b94",
            "1af5-8177-d743-4c94-ac1d-014721ed9b9",
            "+af58177-d743-4c94-ac1d-014721ed9b94",
        ] {
            assert_eq!(uuid(other), None, "{other}");
        }
    }
}
