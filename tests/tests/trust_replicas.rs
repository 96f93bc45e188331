//! Mixed faults with three replicas of each worker, which share the queues: the last version of each record must win, to
//! whichever replica it goes.

use std::time::Duration;

use integration_tests::Error;
use integration_tests::trust::{Options, Run};

#[tokio::test(flavor = "multi_thread")]
async fn three_replicas_keep_the_last_versions() -> Result<(), Error> {
    let workers = vec!["tableinator", "graphinator"];
    let options = Options { seed: 3, workers, replicas: 3, messages: 3000, pace: 120, alone: true };
    let mut run = Run::start(&options).await?;
    run.suffer_mixed(Duration::from_secs(20)).await?;
    let totals = run.finish().await?;
    assert_eq!((totals.lost, totals.misfiled), (0, 0));
    Ok(())
}
