//! Neo4j status code to class: the one place that decides what an error of Neo4j means.

use common::sink::{Class, SinkError};
use neo4rs::Error;

/// The class of a status code (Neo4j status codes documentation). The longest prefix counts.
const CLASSES: &[(&str, Class)] = &[
    // Lost a race; rolled back, so again at once.
    ("Neo.TransientError.Transaction.DeadlockDetected", Class::Conflict),
    ("Neo.TransientError.Transaction.LockAcquisitionTimeout", Class::Conflict),
    ("Neo.TransientError.Transaction.Outdated", Class::Conflict),
    ("Neo.TransientError.Transaction.ConstraintsChanged", Class::Conflict),
    ("Neo.ClientError.Statement.EntityNotFound", Class::Conflict), // deleted by somebody between two of our reads
    // db.memory.transaction.max, or what is left of the total: half of the batch may do.
    ("Neo.TransientError.General.MemoryPoolOutOfMemoryError", Class::TooLarge),
    // The server is away, busy or out of something. The predecessors took most of these for poison (contract §5.7).
    ("Neo.TransientError", Class::Transient),
    ("Neo.DatabaseError", Class::Transient),
    ("Neo.ServerError", Class::Transient), // the client's word for a request that was ignored after a failure
    ("Neo.ClientError.Transaction", Class::Transient), // terminated, timed out, lock client stopped
    ("Neo.ClientError.Cluster", Class::Transient),
    ("Neo.ClientError.General.ForbiddenOnReadOnlyDatabase", Class::Transient),
    ("Neo.ClientError.Security.AuthorizationExpired", Class::Transient),
    ("Neo.ClientError.Security.TokenExpired", Class::Transient),
    // A record's own fault.
    ("Neo.ClientError.Statement.TypeError", Class::Poison), // a value that can't be a property
    ("Neo.ClientError.Statement.ArgumentError", Class::Poison),
    ("Neo.ClientError.Statement.ArithmeticError", Class::Poison),
    ("Neo.ClientError.Schema.ConstraintValidationFailed", Class::Poison),
    ("Neo.ClientError.Request", Class::Poison), // a value that can't be transported
    // Anything else: wrong password, missing database, missing privilege, a statement that this server doesn't know.
    ("", Class::Fatal),
];

/// The class of a status code.
pub fn class(code: &str) -> Class {
    CLASSES
        .iter()
        .filter(|(prefix, _)| code.starts_with(prefix))
        .max_by_key(|(prefix, _)| prefix.len())
        .map_or(Class::Fatal, |(_, class)| *class)
}

/// Classifies an error of the client.
pub fn classify(error: &Error) -> SinkError {
    match error {
        Error::Neo4j(e) if is_too_long_for_its_index(e.code(), e.message()) => {
            SinkError::new(Class::Poison, e.code(), e.message())
        }
        Error::Neo4j(e) => SinkError::new(class(e.code()), e.code(), e.message()),
        Error::AuthenticationError(message) => SinkError::new(Class::Fatal, "authentication", message.clone()),
        Error::StringTooLong | Error::MapTooBig | Error::BytesTooBig | Error::ListTooLong => {
            SinkError::new(Class::Poison, "too_large", error.to_string())
        }
        Error::UnsupportedVersion(..)
        | Error::ProtocolMismatch(_)
        | Error::InvalidConfig
        | Error::UnsupportedScheme(_) => SinkError::new(Class::Fatal, "protocol", error.to_string()),
        other => SinkError::new(Class::Transient, "io", other.to_string()),
    }
}

/// A value that is longer than its index can hold is the record's own fault, but Neo4j has no code for it: this one says no more than
/// that a statement failed, as it does when the store is damaged.
fn is_too_long_for_its_index(code: &str, message: &str) -> bool {
    code == "Neo.DatabaseError.Statement.ExecutionFailed" && message.contains("too large to index")
}

/// What the maintenance meets when its lease has another owner.
pub fn taken_over() -> SinkError {
    SinkError::new(Class::Conflict, "lease", "another replica took over the maintenance")
}

/// The same error of a transaction that has one record: what is more than one transaction may have (`db.memory.transaction.max`, which the
/// text names) is that record's own fault. What is left of the total is not.
pub fn of_one_record(error: SinkError) -> SinkError {
    let own = error.class == Class::TooLarge && error.message.contains("db.memory.transaction.max");
    if own { SinkError { class: Class::Poison, ..error } } else { error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_large_alone_is_its_own_fault() {
        let error = |setting: &str| {
            let text = format!(
                "The allocation of an extra 2.0 MiB would use more than the limit. {setting} threshold reached"
            );
            of_one_record(SinkError::new(
                Class::TooLarge,
                "Neo.TransientError.General.MemoryPoolOutOfMemoryError",
                text,
            ))
            .class
        };
        assert_eq!(error("db.memory.transaction.max"), Class::Poison);
        assert_eq!(error("db.memory.transaction.total.max"), Class::TooLarge);
        assert_eq!(error("dbms.memory.transaction.total.max"), Class::TooLarge);
    }

    #[test]
    fn a_statement_that_failed_is_a_records_fault_only_if_a_value_is_too_long() {
        let code = "Neo.DatabaseError.Statement.ExecutionFailed";
        assert!(is_too_long_for_its_index(
            code,
            "Property value is too large to index, please see index documentation"
        ));
        assert!(!is_too_long_for_its_index(code, "Property record with id 7 is not in use"));
        assert!(!is_too_long_for_its_index("Neo.DatabaseError.General.UnknownError", "too large to index"));
    }

    #[test]
    fn every_kind_has_its_class() {
        for (codes, expected) in [
            (
                "Neo.TransientError.Transaction.DeadlockDetected Neo.ClientError.Statement.EntityNotFound",
                Class::Conflict,
            ),
            (
                "Neo.TransientError.General.DatabaseUnavailable \
                 Neo.ClientError.Transaction.Terminated Neo.ClientError.Transaction.LockClientStopped \
                 Neo.ClientError.Transaction.TransactionTimedOut Neo.ClientError.Transaction.TransactionTimedOutClientConfiguration \
                 Neo.DatabaseError.General.OutOfMemoryError Neo.DatabaseError.General.UnknownError Neo.ClientError.Cluster.NotALeader \
                 Neo.ClientError.General.ForbiddenOnReadOnlyDatabase Neo.ClientError.Security.AuthorizationExpired \
                 Neo.DatabaseError.Statement.ExecutionFailed",
                Class::Transient,
            ),
            ("Neo.TransientError.General.MemoryPoolOutOfMemoryError", Class::TooLarge),
            (
                "Neo.ClientError.Statement.TypeError Neo.ClientError.Statement.ArgumentError \
                 Neo.ClientError.Schema.ConstraintValidationFailed",
                Class::Poison,
            ),
            (
                "Neo.ClientError.Security.Unauthorized Neo.ClientError.Security.Forbidden Neo.ClientError.Database.DatabaseNotFound \
                 Neo.ClientError.Statement.SyntaxError Neo.ClientError.Statement.ParameterMissing Neo.ClientError.Schema.IndexNotFound Something.Else",
                Class::Fatal,
            ),
        ] {
            for code in codes.split_whitespace() {
                assert_eq!(class(code), expected, "{code}");
            }
        }
    }
}
