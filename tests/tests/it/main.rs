//! Integration tests: both workers, as processes, against real services.

mod golden;
