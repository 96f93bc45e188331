//! One fault at a time in the middle of a load with several versions of each record and culprits among them. What must
//! hold at the end is in `integration_tests::trust`. Several faults at a time are in `trust_mixed`.

use integration_tests::Error;
use integration_tests::trust::faults::Fault;
use integration_tests::trust::{Options, Run};

/// The seed is the fault's place in the list, so that the plans differ.
async fn survives(worker: &'static str, faults: &[Fault]) -> Result<(), Error> {
    for fault in faults {
        let seed = Fault::ALL.iter().position(|f| f == fault).unwrap_or_default() as u64 + 100;
        let alone = fault.is_everybody_s();
        let options = Options { seed, workers: vec![worker], replicas: 1, messages: 700, pace: 100, alone };
        let mut run = Run::start(&options).await?;
        run.suffer(*fault, 0).await.map_err(|e| format!("{fault:?}, seed {seed}: {e}"))?;
        let totals = run.finish().await?;
        assert_eq!((totals.lost, totals.misfiled, totals.faults), (0, 0, 1), "{fault:?}");
    }
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

macro_rules! survives {
    ($($name:ident: $worker:literal, $($fault:ident),+;)+) => { $(
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() -> Result<(), Error> {
            survives($worker, &[$(Fault::$fault),+]).await
        }
    )+ };
}

survives! {
    tableinator_is_killed_and_stopped: "tableinator", WorkerKilled, WorkerKilledBeforeAck, WorkerStopped;
    graphinator_is_killed_and_stopped: "graphinator", WorkerKilled, WorkerKilledBeforeAck, WorkerStopped;
    tableinator_is_frozen_and_wakes_up: "tableinator", WorkerFrozen;
    graphinator_is_frozen_and_wakes_up: "graphinator", WorkerFrozen;
    tableinator_s_way_to_the_broker: "tableinator", BrokerCut, BrokerReset, BrokerFrozen, BrokerSlow;
    graphinator_s_way_to_the_broker: "graphinator", BrokerCut, BrokerReset, BrokerFrozen, BrokerSlow;
    tableinator_s_way_to_postgres: "tableinator", DatabaseCut, DatabaseReset, DatabaseFrozen, DatabaseSlow;
    graphinator_s_way_to_neo4j: "graphinator", DatabaseCut, DatabaseReset, DatabaseFrozen, DatabaseSlow;
    tableinator_s_queue_is_deleted: "tableinator", QueueDeleted;
    graphinator_s_queue_is_deleted: "graphinator", QueueDeleted;
    the_broker_wants_tableinator_s_deliveries_back: "tableinator", ConsumerTimeout;
    the_broker_wants_graphinator_s_deliveries_back: "graphinator", ConsumerTimeout;
    the_broker_is_short_of_memory_for_tableinator: "tableinator", MemoryAlarm;
    the_broker_is_short_of_memory_for_graphinator: "graphinator", MemoryAlarm;
    the_broker_goes_down_under_tableinator: "tableinator", BrokerKilled, BrokerRestarted;
    the_broker_goes_down_under_graphinator: "graphinator", BrokerKilled, BrokerRestarted;
    postgres_goes_down: "tableinator", PostgresKilled, PostgresRestarted;
    neo4j_goes_down: "graphinator", Neo4jKilled, Neo4jRestarted;
    backends_are_terminated: "tableinator", BackendsTerminated;
    no_connection_is_left: "tableinator", OutOfConnections;
    the_database_is_read_only: "tableinator", ReadOnly;
    the_disk_is_full: "tableinator", DiskFull;
    a_table_is_locked_by_somebody_else: "tableinator", TableLocked;
    somebody_else_updates_the_same_rows: "tableinator", RowsContended;
    postgres_password_changes_in_mid_run: "tableinator", PostgresPassword;
    transactions_are_terminated: "graphinator", TransactionsTerminated;
    nodes_are_locked_by_somebody_else: "graphinator", NodesLocked;
    somebody_else_writes_the_same_nodes: "graphinator", NodesContended;
    neo4j_password_changes_in_mid_run: "graphinator", Neo4jPassword;
}
