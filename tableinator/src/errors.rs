//! SQLSTATE to class: the one place that decides what an error of PostgreSQL means.

use common::sink::{Class, SinkError};
use deadpool_postgres::{HookError, PoolError, TimeoutType};

/// The class of an SQLSTATE (PostgreSQL documentation, appendix A). The longest prefix counts.
const CLASSES: &[(&str, Class)] = &[
    // A record's own fault.
    ("21", Class::Poison), // a row touched twice by one statement
    ("22", Class::Poison), // data exceptions: bad JSON, bad encoding, NUL, numbers out of range
    ("23", Class::Poison), // integrity constraints
    ("54", Class::Poison), // limits: a name too long for its index (54000), JSON nested too deep (54001)
    // NOT NULL of a column that is not ours: none of ours is ever null, so no record could be written.
    ("23502", Class::Fatal),
    // Lost a race; rolled back, so again at once.
    ("40001", Class::Conflict),
    ("40P01", Class::Conflict),
    // The server is away, busy or out of something.
    ("08", Class::Transient),    // connection
    ("25006", Class::Transient), // read-only: a standby, or a failover going on
    ("25", Class::Transient),    // left-over transaction state
    ("26", Class::Transient),    // prepared statement gone (pooler)
    ("40", Class::Transient),
    ("53", Class::Transient), // disk full, out of memory, too many connections
    ("55", Class::Transient), // lock not available, object in use
    ("57", Class::Transient), // cancelled, shut down, starting up
    ("58", Class::Transient), // the server's own I/O
    // Anything else: wrong password (28), missing database (3D), schema or table (42), privileges (42501), corruption (XX).
    ("", Class::Fatal),
];

/// The class of an SQLSTATE.
pub fn class(sqlstate: &str) -> Class {
    CLASSES
        .iter()
        .filter(|(prefix, _)| sqlstate.starts_with(prefix))
        .max_by_key(|(prefix, _)| prefix.len())
        .map_or(Class::Fatal, |(_, class)| *class)
}

/// Classifies an error of the client.
pub fn classify(error: &tokio_postgres::Error) -> SinkError {
    match error.as_db_error() {
        Some(db) => {
            let mut message = db.message().to_owned();
            for more in [db.detail(), db.hint()].into_iter().flatten() {
                message.push_str("; ");
                message.push_str(more);
            }
            SinkError::new(class(db.code().code()), db.code().code(), message)
        }
        // No answer of the server: refused, reset, closed, TLS.
        None => SinkError::new(Class::Transient, "io", with_sources(error)),
    }
}

/// Classifies an error of the pool.
pub fn classify_pool(error: &PoolError) -> SinkError {
    match error {
        PoolError::Backend(e) | PoolError::PostCreateHook(HookError::Backend(e)) => classify(e),
        // Only this one means that the pool is too small; the others, that no new connection can be made.
        PoolError::Timeout(TimeoutType::Wait) => SinkError::new(Class::Transient, "pool", error.to_string()),
        other => SinkError::new(Class::Transient, "io", other.to_string()),
    }
}

fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(e) = source {
        text.push_str(": ");
        text.push_str(&e.to_string());
        source = e.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_class() {
        for (codes, expected) in [
            ("22P05 22P02 22021 22003 23505 54000 54001 21000", Class::Poison),
            ("40001 40P01", Class::Conflict),
            (
                "08006 08001 53100 53200 53300 55P03 57P01 57P02 57P03 57014 25006 25P02 58030 26000 40003",
                Class::Transient,
            ),
            ("23502 28P01 28000 3D000 42P01 42703 42501 3F000 0A000 XX000 XX001 F0000", Class::Fatal),
        ] {
            for code in codes.split(' ') {
                assert_eq!(class(code), expected, "{code}");
            }
        }
    }
}
