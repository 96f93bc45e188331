//! Faults from a seed, one to three at a time, while both workers load. `cargo xtask soak` runs this again and again with
//! other seeds: `TRUST_SEED`, `TRUST_REPLICAS` and `TRUST_WORKER` say what.

use std::time::Duration;

use integration_tests::Error;
use integration_tests::trust::{Options, Run};

fn number(name: &str, default: u64) -> Result<u64, Error> {
    let given = std::env::var(name).ok();
    given.map_or(Ok(default), |text| text.parse().map_err(|e| format!("{name} is {text:?}: {e}").into()))
}

#[tokio::test(flavor = "multi_thread")]
async fn mixed_faults() -> Result<(), Error> {
    let workers = match std::env::var("TRUST_WORKER").as_deref() {
        Ok("tableinator") => vec!["tableinator"],
        Ok("graphinator") => vec!["graphinator"],
        Ok("both") | Err(_) => vec!["tableinator", "graphinator"],
        Ok(other) => return Err(format!("TRUST_WORKER is {other:?}").into()),
    };
    let replicas = usize::try_from(number("TRUST_REPLICAS", 1)?)?;
    let options = Options { seed: number("TRUST_SEED", 1)?, workers, replicas, messages: 3000, pace: 80, alone: true };
    let mut run = Run::start(&options).await?;
    let suffered = run.suffer_mixed(Duration::from_secs(35)).await;
    suffered.map_err(|e| format!("seed {}: {e}", options.seed))?;
    let totals = run.finish().await?;
    assert_eq!((totals.lost, totals.misfiled), (0, 0));
    assert!(totals.faults > 0);
    Ok(())
}
