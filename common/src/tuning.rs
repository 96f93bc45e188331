//! What can be changed in a running worker: the values in force, and the file that SIGHUP makes it read again. The file is
//! taken as a whole or not at all, and what it does not name is as the environment has it.

use std::sync::Arc;

use tokio::sync::watch;
use tracing::level_filters::LevelFilter;
use tracing::{error, info, warn};

use crate::adaptive::Bounds;
use crate::batch::Limits;
use crate::config::{
    self, BatchVariables, Config, ConfigError, Env, LOG_LEVEL, PREFETCH, RATE_LIMIT, Setting, TUNING_FILE,
};
use crate::logging::Verbosity;
use crate::metrics as names;

/// Largest file in bytes: what is larger is something else.
const MAX_FILE: u64 = 65_536;

/// The values of the variables that can be changed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tuning {
    /// When batches close. In adaptive mode the count is the ceiling.
    pub limits: Limits,
    /// Batches of one type that are prepared and written at the same time. In adaptive mode the ceiling.
    pub writers: usize,
    /// If size and writers are to follow what the database bears.
    pub adaptive: Option<Bounds>,
    /// Unacknowledged messages per queue.
    pub prefetch: u16,
    /// Records per second of all types together; 0: no limit.
    pub rate_limit: u32,
    /// Most verbose level that is logged.
    pub log_level: LevelFilter,
}

impl Tuning {
    /// Variable, value as text, and as a number for a metric: seconds, counts, and for the log level 10 (DEBUG), 20, 30 or 40 (ERROR).
    fn values(&self, batch: &BatchVariables) -> [(&'static str, String, f64); 6] {
        let count = |name, count: usize| (name, count.to_string(), count as f64);
        let (level, number) = match self.log_level {
            LevelFilter::ERROR => ("ERROR", 40.0),
            LevelFilter::WARN => ("WARNING", 30.0),
            LevelFilter::INFO => ("INFO", 20.0),
            _ => ("DEBUG", 10.0),
        };
        let interval = self.limits.interval.as_secs_f64();
        [
            count(batch.size, self.limits.count),
            (batch.interval, interval.to_string(), interval),
            count(batch.writers, self.writers),
            count(PREFETCH, self.prefetch.into()),
            count(RATE_LIMIT, self.rate_limit as usize),
            (LOG_LEVEL, level.to_owned(), number),
        ]
    }
}

/// What holds now, for the pipelines and for people.
#[derive(Clone, Debug)]
pub struct InForce {
    /// The values.
    pub tuning: Tuning,
    /// The whole configuration, without secrets.
    pub settings: Vec<Setting>,
}

/// What a subscription goes by, and word of anything newer.
#[derive(Clone, Debug)]
pub struct Tuned {
    /// The values.
    pub now: Tuning,
    /// What is in force by now.
    news: watch::Receiver<InForce>,
}

impl Tuned {
    /// The newest values.
    pub fn new(mut news: watch::Receiver<InForce>) -> Self {
        let now = news.borrow_and_update().tuning;
        Tuned { now, news }
    }

    /// Other values, if there are any since the last look. Costs next to nothing when there are none.
    pub fn news(&mut self) -> Option<Tuning> {
        if !self.news.has_changed().unwrap_or(false) {
            return None;
        }
        Some(self.news.borrow_and_update().tuning)
    }
}

/// Reads the file again, and puts what it says into force.
pub struct Tuner {
    env: Env,
    batch: &'static BatchVariables,
    config: Arc<Config>,
    said: Vec<String>,
    in_force: watch::Sender<InForce>,
}

impl Tuner {
    /// `env` is the environment as it was at the start without the file, `settings` what came of both, `said` the notes about
    /// that.
    pub fn new(
        env: Env,
        batch: &'static BatchVariables,
        config: Arc<Config>,
        settings: Vec<Setting>,
        said: Vec<String>,
    ) -> Self {
        let settings = config.in_force(&config.tuning, settings);
        let (in_force, _) = watch::channel(InForce { tuning: config.tuning, settings });
        Tuner { env, batch, config, said, in_force }
    }

    /// What is in force, now and later.
    pub fn watch(&self) -> watch::Receiver<InForce> {
        self.in_force.subscribe()
    }

    /// Reads the file, and puts all of it into force or nothing. Says in the log and in the metrics what came of it.
    pub fn reload(&mut self, verbosity: &Verbosity) {
        let outcome = match self.read() {
            Ok((new, notes)) => self.put_into_force(new, notes, verbosity),
            Err(problems) => {
                for problem in problems.problems() {
                    error!(problem, "🎛️ {TUNING_FILE} refused, everything stays as it was: {problem}");
                }
                "refused"
            }
        };
        metrics::counter!(names::TUNING_RELOADS, "outcome" => outcome).increment(1);
    }

    fn read(&self) -> Result<(InForce, Vec<String>), ConfigError> {
        let mut env = self.env.clone();
        if env.optional(TUNING_FILE).is_none() {
            env.problem(format!("{TUNING_FILE} is not set: let it name a file, and restart"));
        }
        env.tune();
        let settings = env.settings();
        let tuning = config::tuning(&mut env, self.batch, self.config.tuning.limits.bytes, self.config.hold_limit);
        let (tuning, notes) = env.finish(tuning)?;
        Ok((InForce { tuning, settings: self.config.in_force(&tuning, settings) }, notes))
    }

    fn put_into_force(&mut self, new: InForce, notes: Vec<String>, verbosity: &Verbosity) -> &'static str {
        let before = self.in_force.borrow().tuning;
        let tuning = new.tuning;
        // Whichever of the two levels lets more through, so that a change of it is seen too.
        verbosity.set(tuning.log_level.max(before.log_level));
        for note in notes.iter().filter(|note| !self.said.contains(note)) {
            warn!("⚙️ {note}");
        }
        self.said = notes;
        for ((name, from, _), (_, to, _)) in before.values(self.batch).into_iter().zip(tuning.values(self.batch)) {
            if from != to {
                info!(name, from, to, "🎛️ {name} changes from {from} to {to}");
            }
        }
        // The page may show another origin of the same value.
        self.in_force.send_replace(new);
        self.show();
        let outcome = if before == tuning { "unchanged" } else { "applied" };
        info!(outcome, "🎛️ {TUNING_FILE} was read again");
        verbosity.set(tuning.log_level);
        outcome
    }

    /// Shows what is in force in the metrics.
    pub fn show(&self) {
        for (name, _, number) in self.in_force.borrow().tuning.values(self.batch) {
            metrics::gauge!(names::TUNING, "setting" => name).set(number);
        }
    }
}

/// One line of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The variable.
    pub name: String,
    /// Its value; empty as good as absent.
    pub value: String,
    /// File and line, to begin a problem with: `FILE:LINE: `.
    pub place: String,
}

/// Reads a file of `NAME=VALUE` lines. Empty ones and those that begin with `#` count for nothing.
///
/// # Errors
/// Everything that is wrong with it. Of a line that is none of these, nothing is repeated: who knows what it is.
pub fn read(path: &str) -> Result<Vec<Assignment>, Vec<String>> {
    let readable = || {
        let found = std::fs::metadata(path)?;
        if !found.is_file() || found.len() > MAX_FILE {
            return Err(std::io::Error::other(format!("it is no file of at most {MAX_FILE} bytes")));
        }
        std::fs::read_to_string(path)
    };
    let text = readable()
        .map_err(|e| vec![format!("{TUNING_FILE}: can't read {path}: {e}; an empty file changes nothing")])?;
    let (mut assignments, mut problems) = (Vec::new(), Vec::new());
    for (line, number) in text.lines().map(str::trim).zip(1..) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let place = format!("{path}:{number}: ");
        let is_name = |name: &&str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        match line.split_once('=').map(|(name, value)| (name.trim_end(), value.trim_start())) {
            Some((name, value)) if is_name(&name) => {
                assignments.push(Assignment { name: name.to_owned(), value: value.to_owned(), place });
            }
            _ => problems.push(format!("{place}no NAME=VALUE, and no comment (# ...): put it right or remove it")),
        }
    }
    if problems.is_empty() { Ok(assignments) } else { Err(problems) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{BROKER, COMMON, DefaultValue, Variable, secret, tunable, variable};

    const BATCH: BatchVariables =
        BatchVariables { mode: "X_BATCH_MODE", size: "X_BATCH_SIZE", interval: "X_INTERVAL", writers: "X_WRITERS" };
    const OWN: &[Variable] = &[
        variable("X_BATCH_MODE", DefaultValue::Value("true"), ""),
        tunable("X_BATCH_SIZE", DefaultValue::Value("500"), ""),
        tunable("X_INTERVAL", DefaultValue::Value("2.0"), ""),
        tunable("X_WRITERS", DefaultValue::Value("2"), ""),
        secret("X_PASSWORD", DefaultValue::Value(""), ""),
    ];

    /// A tuner whose file can be written again, in an environment with `X_BATCH_SIZE=10`.
    struct Bench {
        path: String,
        tuner: Tuner,
    }

    impl Bench {
        fn new(name: &str, extra: &[(&str, &str)]) -> Self {
            let path = std::env::temp_dir().join(format!("tuning-{name}-{}", std::process::id()));
            let path = path.to_string_lossy().into_owned();
            std::fs::write(&path, "").expect("temp file");
            let given = [("X_BATCH_SIZE", "10"), ("TUNING_FILE", path.as_str())];
            let values = given.iter().chain(extra).map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
            let env = Env::from_values(&[BROKER, COMMON, OWN], values);
            let (untuned, settings, mut env) = (env.clone(), env.settings(), env);
            env.tune();
            let config = config::common(&mut env, &BATCH, 0);
            let (config, notes) = env.finish(config).expect("valid");
            Bench { path, tuner: Tuner::new(untuned, &BATCH, Arc::new(config), settings, notes) }
        }

        fn read(&self, text: &str) -> Result<InForce, String> {
            std::fs::write(&self.path, text).expect("temp file");
            self.tuner.read().map(|(in_force, _)| in_force).map_err(|e| e.to_string())
        }
    }

    impl Drop for Bench {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.path);
        }
    }

    #[test]
    fn the_file_wins_and_what_it_does_not_name_is_as_it_was() {
        let bench = Bench::new("wins", &[]);
        assert_eq!(bench.tuner.in_force.borrow().tuning.limits.count, 10);
        let text = "# for tonight\n\n X_BATCH_SIZE = 2000 \nX_INTERVAL=0.5\r\nX_WRITERS=3\nRABBITMQ_PREFETCH=9000\nRATE_LIMIT=700\nLOG_LEVEL=warning";
        let InForce { tuning, settings } = bench.read(text).expect("valid");
        assert_eq!((tuning.limits.count, tuning.limits.interval.as_millis()), (2000, 500));
        assert_eq!((tuning.writers, tuning.prefetch, tuning.rate_limit), (3, 9000, 700));
        assert_eq!(tuning.log_level, LevelFilter::WARN);
        for (name, value, origin) in [("X_BATCH_SIZE", "2000", "tuned"), ("RABBITMQ_PREFETCH", "9000", "tuned")] {
            assert!(settings.contains(&Setting { name, value: value.to_owned(), origin }), "{settings:?}");
        }
        // Empty is as good as absent, as in the environment.
        let InForce { tuning, settings } = bench.read("X_BATCH_SIZE=\nX_WRITERS=1").expect("valid");
        assert_eq!((tuning.limits.count, tuning.writers, tuning.prefetch, tuning.rate_limit), (10, 1, 20, 0));
        for (name, value, origin) in
            [("X_BATCH_SIZE", "10", "set"), ("X_WRITERS", "1", "tuned"), ("RABBITMQ_PREFETCH", "20", "default")]
        {
            assert!(settings.contains(&Setting { name, value: value.to_owned(), origin }), "{settings:?}");
        }
    }

    #[test]
    fn what_can_t_be_is_refused_with_file_line_name_and_remedy() {
        let bench = Bench::new("refused", &[]);
        for (text, line, parts) in [
            ("X_BATCH_SIZE=many", 1, ["X_BATCH_SIZE is \"many\"", "give a number from 1 to 20000"]),
            ("\n#\nX_INTERVAL=0", 3, ["X_INTERVAL is \"0\"", "give a number from 0.01"]),
            ("X_INTERVAL=NaN", 1, ["X_INTERVAL is \"NaN\"", "give a number from 0.01"]),
            ("X_WRITERS=17", 1, ["X_WRITERS", "from 1 to 16"]),
            ("RATE_LIMIT=-1", 1, ["RATE_LIMIT", "from 0 to 1000000"]),
            ("LOG_LEVEL=loud", 1, ["LOG_LEVEL is \"loud\"", "give DEBUG, INFO"]),
            ("RABBITMQ_PREFETCH=70000", 1, ["RABBITMQ_PREFETCH", "from 1 to 65535"]),
            ("X_BATCH_SIZE=20000\nX_WRITERS=16", 1, ["X_BATCH_SIZE x (X_WRITERS + 1) is 340000", "lower one of them"]),
            ("RATE_LIMIT=1\nX_BATCH_SIZE=500", 1, ["RATE_LIMIT is 1", "give at least 7"]),
            ("RABBITMQ_HOST=elsewhere", 1, ["RABBITMQ_HOST can't be changed", "set it in the environment and restart"]),
            ("X_WRITERS=1\nX_BATCHSIZE=5", 2, ["X_BATCHSIZE is unknown", "X_BATCH_SIZE, X_INTERVAL, X_WRITERS"]),
            ("X_WRITERS=1\nX_WRITERS=2", 2, ["X_WRITERS is there twice", "remove one"]),
            ("X_WRITERS: 1", 1, ["no NAME=VALUE", "remove it"]),
        ] {
            let problem = bench.read(text).expect_err(text);
            let place = format!("{}:{line}: ", bench.path);
            assert!(problem.contains(&place) && parts.iter().all(|part| problem.contains(part)), "{text}: {problem}");
        }
    }

    #[test]
    fn all_problems_of_a_file_are_told_at_once() {
        let bench = Bench::new("all", &[]);
        let problem = bench.read("X_BATCH_SIZE=0\nX_PASSWORD=x\nX_WRITERS=0").expect_err("invalid");
        assert!(problem.contains("3 problem(s)"), "{problem}");
    }

    #[test]
    fn no_value_is_repeated_that_could_be_a_secret() {
        let bench = Bench::new("secret", &[]);
        for text in
            ["X_PASSWORD=hidden", "X_PASSWORD_FILE=hidden", "hidden", "postgres://u:hidden@h/?a=b", "UNKNOWN=hidden"]
        {
            let problem = bench.read(text).expect_err(text);
            assert!(!problem.contains("hidden"), "{problem}");
        }
    }

    #[test]
    fn a_file_that_can_t_be_read_is_refused() {
        let mut bench = Bench::new("away", &[]);
        for path in ["/nowhere/tuning", "/dev/zero", "/tmp"] {
            let problems = read(path).expect_err(path).concat();
            assert!(problems.contains(&format!("TUNING_FILE: can't read {path}")), "{problems}");
        }
        let before = bench.tuner.in_force.borrow().tuning;
        std::fs::remove_file(&bench.path).expect("temp file");
        assert!(bench.tuner.read().is_err());
        bench.tuner.env = Env::from_values(&[BROKER, COMMON, OWN], []);
        let problem = bench.tuner.read().expect_err("no file is named").to_string();
        assert!(problem.contains("TUNING_FILE is not set"), "{problem}");
        assert_eq!(bench.tuner.in_force.borrow().tuning, before);
    }

    #[test]
    fn a_batch_of_one_stays_one_and_adaptive_bounds_move() {
        let single = Bench::new("single", &[("X_BATCH_MODE", "false")]);
        assert_eq!(single.read("X_BATCH_SIZE=2000").map(|new| new.tuning.limits.count), Ok(1));
        let adaptive = Bench::new("adaptive", &[("X_BATCH_MODE", "adaptive")]);
        let bounds = adaptive.read("X_BATCH_SIZE=2000\nX_WRITERS=4").map(|new| new.tuning.adaptive);
        assert_eq!(bounds, Ok(Some(Bounds { floor: 50, ceiling: 2000, writers: 4 })));
    }

    #[test]
    fn a_subscription_hears_of_news_once() {
        let bench = Bench::new("news", &[]);
        let mut tuned = Tuned::new(bench.tuner.watch());
        assert_eq!(tuned.news(), None);
        bench.tuner.in_force.send_replace(bench.read("RATE_LIMIT=50").expect("valid"));
        assert_eq!(tuned.news().map(|new| new.rate_limit), Some(50));
        assert_eq!(tuned.news(), None);
    }
}
