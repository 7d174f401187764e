//! What of a row a reader sees. Everything that names somebody or something is a token unless a policy says otherwise; a token is the
//! same for the same one, so that rows can still be told apart and asked for.

use super::policy::Group;
use crate::query::{Column, Pseudonym, Row};

/// How names are shown.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Sight {
    /// As tokens.
    #[default]
    Tokens,
    /// In clear where the row's actor is the reader itself, who has these tokens, and as tokens elsewhere.
    Own(Vec<Pseudonym>),
    /// In clear.
    Clear,
}

/// What a reader sees.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Mask {
    /// Names.
    pub identity: Sight,
    /// Whether it sees the records.
    pub body: bool,
}

/// How a column of a row is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shown {
    /// As it is in the row, which is all there is of it.
    Plain,
    /// As the names behind the row's tokens: its identity segment may be opened.
    Clear,
    /// As the row's tokens.
    Token,
}

impl Mask {
    /// The group that a column is of; none if it names nobody.
    pub const fn group(column: Column) -> Option<Group> {
        if column.is_pseudonym() { Some(Group::Identity) } else { None }
    }

    /// How a column of this row is shown.
    pub fn shows(&self, column: Column, row: &Row) -> Shown {
        match Mask::group(column) {
            None | Some(Group::Body) => Shown::Plain,
            Some(Group::Identity) if self.opens(row) => Shown::Clear,
            Some(Group::Identity) => Shown::Token,
        }
    }

    /// Whether the identity segment of this row may be opened.
    pub fn opens(&self, row: &Row) -> bool {
        match &self.identity {
            Sight::Clear => true,
            // A thing, an address or a credential of a row is the reader's own where the row is.
            Sight::Own(own) => {
                row.actor.is_some_and(|actor| own.contains(&actor)) && row.on_behalf_of.is_empty()
            }
            Sight::Tokens => false,
        }
    }

    /// The columns that are masked for every row or for some.
    pub fn masked(&self) -> Vec<Column> {
        let is_masked = |column: &Column| Mask::group(*column).is_some() && self.identity != Sight::Clear;
        Column::ALL.into_iter().filter(is_masked).collect()
    }
}
