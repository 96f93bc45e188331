//! The extractor's environment variables.

use common::config::{self, BrokerConfig, DefaultValue, Env, Variable, secret, variable};

use DefaultValue::{Derived, Value};

use crate::bindings::Management;

/// The extractor's own variables, beside [`config::BROKER`].
pub const VARIABLES: &[Variable] = &[
    variable("HEALTH_PORT", Value("8000"), "port of /health, /ready and /metrics; 0 takes a free one"),
    variable("DATA_QUALITY_RULES", Derived("no rules"), "rules file, as with --rules"),
    secret(
        "COMPLETION_WEBHOOK_URL",
        Derived("nobody is called"),
        "URL that gets a POST with JSON when a run is complete; tried again by the next run if need be",
    ),
    secret(
        "RABBITMQ_MANAGEMENT_URL",
        Derived("queues that are not bound are bound"),
        "address of RabbitMQ's management API, such as http://rabbitmq:15672: a queue that is not bound is refused then; \
         user and password as for AMQP, unless it has some",
    ),
];

/// Everything that the extractor reads.
pub const TABLES: [&[Variable]; 2] = [config::BROKER, VARIABLES];

/// What the environment says.
#[derive(Clone, Debug)]
pub struct Config {
    /// How to reach the broker.
    pub broker: BrokerConfig,
    /// Port of the HTTP server.
    pub health_port: u16,
    /// Rules file.
    pub rules: Option<String>,
    /// Whom to call when a run is complete.
    pub webhook: Option<String>,
    /// Whom to ask for bindings.
    pub management: Option<Management>,
}

/// Reads the environment.
///
/// # Errors
/// [`config::ConfigError`] with all problems.
pub fn read(mut env: Env) -> Result<(Config, Vec<String>), config::ConfigError> {
    let broker = config::broker(&mut env);
    let management = env.optional("RABBITMQ_MANAGEMENT_URL").map(|url| Management::new(&url, &broker));
    let management = management.transpose().unwrap_or_else(|problem| {
        env.problem(format!("RABBITMQ_MANAGEMENT_URL {problem}"));
        None
    });
    let config = Config {
        broker,
        management,
        health_port: env.number("HEALTH_PORT", 0..=u16::MAX),
        rules: env.optional("DATA_QUALITY_RULES"),
        webhook: env.optional("COMPLETION_WEBHOOK_URL"),
    };
    if let Some(url) = &config.webhook
        && !(url.starts_with("http://") || url.starts_with("https://"))
    {
        env.problem("COMPLETION_WEBHOOK_URL does not begin with http:// or https://");
    }
    env.finish(config)
}
