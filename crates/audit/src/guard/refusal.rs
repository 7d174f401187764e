//! What a reader is told who is refused: a reason that programs can rely on, a sentence, what it would have cost, and what to do instead.
//! A refusal was decided without reading a row.

use std::fmt;

use crate::query::Estimate;

/// Why a read is refused. The words never change.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Code {
    /// It does not say both when to begin and when to end.
    NoWindow,
    /// It ends before it begins.
    ReversedWindow,
    /// Longer than the reader, or the runbook, may look back at once.
    WindowTooLong,
    /// No runbook of this name is there for this reader.
    UnknownRunbook,
    /// No stream of this name is there for this reader.
    UnknownStream,
    /// No policy permits it, or one forbids it.
    Forbidden,
    /// It would cost more than the reader, or the runbook, may spend at once.
    OverBudget,
    /// It would cost more than is left for today.
    QuotaSpent,
    /// As many queries of this reader run as may.
    TooManyRunning,
    /// It asks for what the reader may not see.
    MaskedColumn,
    /// A parameter is missing, is not of its type, or is none of the runbook's.
    BadParameter,
    /// A condition is not one that can be asked.
    BadFilter,
    /// It counts groups that may be so small that the count says who is in them.
    SmallGroup,
    /// It does not say why.
    PurposeRequired,
    /// It does not say for which case.
    TicketRequired,
    /// Nobody asked for this approval.
    ApprovalUnknown,
    /// Nobody has answered yet.
    ApprovalPending,
    /// Another person said no.
    ApprovalDenied,
    /// It was not used in time, or not answered in time.
    ApprovalExpired,
    /// It was given for another read than this one.
    ApprovalEdited,
    /// It was used before.
    ApprovalUsed,
    /// Somebody answers a request of their own.
    ApprovalSelf,
    /// Somebody answers who may not.
    ApprovalForbidden,
    /// The page token was given to somebody else.
    PageOfOthers,
    /// The page token is none of ours, or belongs to another read than this one.
    PageEdited,
    /// The page token is too old.
    PageExpired,
    /// What has to be known before could not be read.
    Unavailable,
}

impl Code {
    /// Every code.
    pub const ALL: [Code; 27] = [
        Code::NoWindow,
        Code::ReversedWindow,
        Code::WindowTooLong,
        Code::UnknownRunbook,
        Code::UnknownStream,
        Code::Forbidden,
        Code::OverBudget,
        Code::QuotaSpent,
        Code::TooManyRunning,
        Code::MaskedColumn,
        Code::BadParameter,
        Code::BadFilter,
        Code::SmallGroup,
        Code::PurposeRequired,
        Code::TicketRequired,
        Code::ApprovalUnknown,
        Code::ApprovalPending,
        Code::ApprovalDenied,
        Code::ApprovalExpired,
        Code::ApprovalEdited,
        Code::ApprovalUsed,
        Code::ApprovalSelf,
        Code::ApprovalForbidden,
        Code::PageOfOthers,
        Code::PageEdited,
        Code::PageExpired,
        Code::Unavailable,
    ];

    /// The word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Code::NoWindow => "NO_WINDOW",
            Code::ReversedWindow => "REVERSED_WINDOW",
            Code::WindowTooLong => "WINDOW_TOO_LONG",
            Code::UnknownRunbook => "UNKNOWN_RUNBOOK",
            Code::UnknownStream => "UNKNOWN_STREAM",
            Code::Forbidden => "FORBIDDEN",
            Code::OverBudget => "OVER_BUDGET",
            Code::QuotaSpent => "QUOTA_SPENT",
            Code::TooManyRunning => "TOO_MANY_RUNNING",
            Code::MaskedColumn => "MASKED_COLUMN",
            Code::BadParameter => "BAD_PARAMETER",
            Code::BadFilter => "BAD_FILTER",
            Code::SmallGroup => "SMALL_GROUP",
            Code::PurposeRequired => "PURPOSE_REQUIRED",
            Code::TicketRequired => "TICKET_REQUIRED",
            Code::ApprovalUnknown => "APPROVAL_UNKNOWN",
            Code::ApprovalPending => "APPROVAL_PENDING",
            Code::ApprovalDenied => "APPROVAL_DENIED",
            Code::ApprovalExpired => "APPROVAL_EXPIRED",
            Code::ApprovalEdited => "APPROVAL_EDITED",
            Code::ApprovalUsed => "APPROVAL_USED",
            Code::ApprovalSelf => "APPROVAL_SELF",
            Code::ApprovalForbidden => "APPROVAL_FORBIDDEN",
            Code::PageOfOthers => "PAGE_OF_OTHERS",
            Code::PageEdited => "PAGE_EDITED",
            Code::PageExpired => "PAGE_EXPIRED",
            Code::Unavailable => "UNAVAILABLE",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A read that is not made.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{code}: {message}. {suggestion}")]
pub struct Refusal {
    /// Why, for programs.
    pub code: Code,
    /// Why, in words, without a full stop.
    pub message: String,
    /// What to do instead: a sentence.
    pub suggestion: String,
    /// What it would have cost at most, where that was found out.
    pub estimate: Option<Estimate>,
    /// The policies that decided, by id.
    pub policies: Vec<String>,
}

impl Refusal {
    /// Before anything was estimated.
    pub fn new(code: Code, message: impl Into<String>, suggestion: impl Into<String>) -> Refusal {
        let (message, suggestion) = (message.into(), suggestion.into());
        Refusal { code, message, suggestion, estimate: None, policies: Vec::new() }
    }

    /// With what it would have cost.
    pub fn costing(mut self, estimate: Estimate) -> Refusal {
        self.estimate = Some(estimate);
        self
    }
}
