//! One fault at a time in the middle of a load with several versions of each record and culprits among them. What must
//! hold at the end is in `integration_tests::trust`. Several faults at a time are in `trust_mixed`.

use integration_tests::Error;
use integration_tests::trust::faults::Fault;
use integration_tests::trust::{Options, Run};

/// One fault after the other in one load: for each worker, or for all if they share it. The seed is the first one's place in the list, so
/// that the plans differ.
async fn survive(workers: &[&'static str], faults: &[Fault]) -> Result<(), Error> {
    let place = |fault| Fault::ALL.iter().position(|f| f == fault).unwrap_or_default();
    let seed = 100 + faults.first().map_or(0, place) as u64;
    let alone = faults.iter().any(|fault| fault.is_everybody_s());
    let squads: Vec<usize> = (0..workers.len()).collect();
    let turns: Vec<(Fault, &[usize])> = faults
        .iter()
        .flat_map(|fault| {
            squads.chunks(if fault.is_shared() { squads.len() } else { 1 }).map(|squads| (*fault, squads))
        })
        .collect();
    let messages = 500 + 300 * turns.len();
    let options = Options { seed, workers: workers.to_vec(), replicas: 1, messages, pace: 60, alone };
    let mut run = Run::start(&options).await?;
    for (fault, squads) in &turns {
        run.suffer(*fault, squads).await.map_err(|e| format!("{fault:?}, seed {seed}: {e}"))?;
    }
    let totals = run.finish().await?;
    assert_eq!((totals.lost, totals.misfiled, totals.faults), (0, 0, turns.len()), "{turns:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_breaks() -> Result<(), Error> {
    let options = Options {
        seed: 1,
        workers: vec!["tableinator", "graphinator"],
        replicas: 1,
        messages: 1000,
        pace: 0,
        alone: false,
    };
    let totals = Run::start(&options).await?.finish().await?;
    assert_eq!(totals.published, totals.confirmed, "nothing had to be sent twice");
    Ok(())
}

macro_rules! survive {
    ($($name:ident: [$($worker:literal),+], $($fault:ident),+;)+) => { $(
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() -> Result<(), Error> {
            survive(&[$($worker),+], &[$(Fault::$fault),+]).await
        }
    )+ };
}

// What leaves a second worker behind (WorkerFrozen) comes last. A deleted queue has a load of its own: what it does to the end of a run
// would hide what others do.
survive! {
    tableinator_dies: ["tableinator"], WorkerKilled, WorkerKilledBeforeAck, WorkerStopped, WorkerFrozen;
    graphinator_dies: ["graphinator"], WorkerKilled, WorkerKilledBeforeAck, WorkerStopped, WorkerFrozen;
    tableinator_s_way_to_the_broker: ["tableinator"], BrokerCut, BrokerReset, BrokerFrozen, BrokerSlow;
    graphinator_s_way_to_the_broker: ["graphinator"], BrokerCut, BrokerReset, BrokerFrozen, BrokerSlow;
    tableinator_s_way_to_postgres: ["tableinator"], DatabaseCut, DatabaseReset, DatabaseFrozen, DatabaseSlow;
    graphinator_s_way_to_neo4j: ["graphinator"], DatabaseCut, DatabaseReset, DatabaseFrozen, DatabaseSlow;
    tableinator_s_queue_is_deleted: ["tableinator"], QueueDeleted;
    graphinator_s_queue_is_deleted: ["graphinator"], QueueDeleted;
    the_broker_wants_deliveries_back: ["tableinator", "graphinator"], ConsumerTimeout, MemoryAlarm;
    the_broker_goes_down: ["tableinator", "graphinator"], BrokerKilled, BrokerRestarted;
    postgres_goes_down: ["tableinator"], PostgresKilled, PostgresRestarted;
    neo4j_goes_down: ["graphinator"], Neo4jKilled, Neo4jRestarted;
    postgres_refuses: ["tableinator"], BackendsTerminated, OutOfConnections, ReadOnly, DiskFull, PostgresPassword;
    neo4j_refuses: ["graphinator"], TransactionsTerminated, Neo4jPassword;
    somebody_else_has_the_rows: ["tableinator"], TableLocked, RowsContended;
    somebody_else_has_the_nodes: ["graphinator"], NodesLocked, NodesContended;
}
