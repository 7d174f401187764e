//! How much each role may ask for. What several roles allow adds up to the most of each; an agent has no more than an agent's,
//! whatever its roles.

use std::collections::BTreeMap;

use super::{Kind, Principal, Role};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const DAY_S: u64 = 86_400;

/// The most queries of one reader that run at once, of any role: each holds a thread and what it has read.
pub const MAX_RUNNING: u32 = 16;

/// What one reader may ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// The longest window of one query, in seconds.
    pub window_s: u64,
    /// The most bytes of the index that one query may read.
    pub query_bytes: u64,
    /// Above so many bytes another person has to agree.
    pub approval_bytes: u64,
    /// The most bytes on one day, UTC.
    pub day_bytes: u64,
    /// The most rows of one answer, and the most that are put together into one.
    pub rows: u64,
    /// The longest that one query may take, in milliseconds.
    pub timeout_ms: u64,
    /// The most queries at once.
    pub running: u32,
    /// Groups of fewer events are not counted for a reader who sees tokens: the count would say who is in them.
    pub least_group: u64,
}

impl Limits {
    /// Nothing at all.
    pub const NONE: Limits = Limits {
        window_s: 0,
        query_bytes: 0,
        approval_bytes: 0,
        day_bytes: 0,
        rows: 0,
        timeout_ms: 0,
        running: 0,
        least_group: u64::MAX,
    };

    /// What a role is given where nothing else is configured.
    pub const fn shipped(role: Role) -> Limits {
        match role {
            Role::Responder => Limits {
                window_s: 31 * DAY_S,
                query_bytes: 5 * GIB,
                approval_bytes: 5 * GIB,
                day_bytes: 50 * GIB,
                rows: 100_000,
                timeout_ms: 60_000,
                running: 8,
                least_group: 5,
            },
            Role::Auditor => Limits {
                window_s: 400 * DAY_S,
                query_bytes: 50 * GIB,
                approval_bytes: 10 * GIB,
                day_bytes: 200 * GIB,
                rows: 1_000_000,
                timeout_ms: 600_000,
                running: 8,
                least_group: 1,
            },
            Role::Developer => Limits {
                window_s: 7 * DAY_S,
                query_bytes: 512 * MIB,
                approval_bytes: 512 * MIB,
                day_bytes: 5 * GIB,
                rows: 10_000,
                timeout_ms: 15_000,
                running: 4,
                least_group: 5,
            },
            Role::AiAgent => Limits {
                window_s: DAY_S,
                query_bytes: 128 * MIB,
                approval_bytes: 128 * MIB,
                day_bytes: GIB,
                rows: 1_000,
                timeout_ms: 10_000,
                running: 2,
                least_group: 10,
            },
            Role::Viewer => Limits {
                window_s: 90 * DAY_S,
                query_bytes: 256 * MIB,
                approval_bytes: 256 * MIB,
                day_bytes: 2 * GIB,
                rows: 10_000,
                timeout_ms: 10_000,
                running: 2,
                least_group: 10,
            },
            Role::Admin => Limits::NONE,
            // Single events only: a sample of each source, again and again.
            Role::Monitor => Limits { day_bytes: 5 * GIB, running: 2, least_group: 10, ..Limits::NONE },
        }
    }

    fn most(self, other: Limits) -> Limits {
        self.each(other, u64::max, u64::min)
    }

    fn least(self, other: Limits) -> Limits {
        self.each(other, u64::min, u64::max)
    }

    fn each(self, other: Limits, pick: fn(u64, u64) -> u64, pick_group: fn(u64, u64) -> u64) -> Limits {
        let running = pick(u64::from(self.running), u64::from(other.running));
        Limits {
            window_s: pick(self.window_s, other.window_s),
            query_bytes: pick(self.query_bytes, other.query_bytes),
            approval_bytes: pick(self.approval_bytes, other.approval_bytes),
            day_bytes: pick(self.day_bytes, other.day_bytes),
            rows: pick(self.rows, other.rows),
            timeout_ms: pick(self.timeout_ms, other.timeout_ms),
            running: u32::try_from(running).unwrap_or(MAX_RUNNING).min(MAX_RUNNING),
            least_group: pick_group(self.least_group, other.least_group),
        }
    }
}

/// The limits of every role.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LimitTable(BTreeMap<Role, Limits>);

impl Default for LimitTable {
    fn default() -> LimitTable {
        LimitTable(Role::ALL.into_iter().map(|role| (role, Limits::shipped(role))).collect())
    }
}

impl LimitTable {
    /// Gives a role other limits.
    pub fn set(&mut self, role: Role, limits: Limits) {
        self.0.insert(role, limits);
    }

    /// What a reader may ask for.
    pub fn of(&self, who: &Principal) -> Limits {
        let of_role = |role: &Role| self.0.get(role).copied().unwrap_or(Limits::NONE);
        let all = who.roles.iter().map(of_role).fold(Limits::NONE, Limits::most);
        if who.kind == Kind::Agent { all.least(of_role(&Role::AiAgent)) } else { all }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guard::Tenants;

    fn of(kind: Kind, roles: &[Role]) -> Limits {
        let roles = roles.iter().copied().collect();
        let who = Principal { name: "x".into(), kind, roles, tenants: Tenants::Every, subject: None };
        LimitTable::default().of(&who)
    }

    #[test]
    fn roles_add_up_and_an_agent_has_no_more_than_an_agents() {
        assert_eq!(of(Kind::Human, &[]), Limits::NONE);
        assert_eq!(of(Kind::Human, &[Role::Admin]), Limits::NONE);
        let both = of(Kind::Human, &[Role::Developer, Role::Viewer]);
        assert_eq!((both.window_s, both.query_bytes), (90 * DAY_S, 512 * MIB));
        assert_eq!((both.least_group, both.running), (5, 4));
        assert_eq!(of(Kind::Agent, &[Role::Auditor]), Limits::shipped(Role::AiAgent));
        assert_eq!(of(Kind::Agent, &[]), Limits::NONE);
    }
}
