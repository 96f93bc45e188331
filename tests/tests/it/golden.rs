//! Golden messages in, golden states out.

use std::path::PathBuf;

use integration_tests::oracle::Expected;
use integration_tests::stage::{by_type, services, settled};
use integration_tests::states::{self, Allowed};
use integration_tests::{Error, Stage};

/// Where the golden data lies, if it is there.
fn golden() -> Option<PathBuf> {
    let dir =
        std::env::var_os("GOLDEN_DIR").map_or_else(|| xtask::services::root().join("../shared/golden"), PathBuf::from);
    dir.join("messages").is_dir().then_some(dir)
}

async fn assert_tables(stage: &Stage, expected: &Expected) -> Result<(), Error> {
    let actual = states::read_tables(&stage.postgres().await?).await?;
    Ok(states::compare_tables(&actual, &expected.tables)?)
}

async fn assert_graph(expected: &Expected, allowed: &Allowed) -> Result<(), Error> {
    let (nodes, rels) = states::read_graph(&services().neo4j()?).await?;
    Ok(states::compare_graph(&nodes, &rels, expected, allowed)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn golden_months_one_by_one() -> Result<(), Error> {
    let Some(dir) = golden() else {
        eprintln!("SKIPPED golden_months_one_by_one: no ../shared/golden");
        return Ok(());
    };
    for month in ["20200801", "20260401", "20260501"] {
        let stage = Stage::with_graph("golden").await?;
        let messages = states::load_messages(&dir.join("messages"), month)?;
        let expected = states::load_expected(&dir.join("states").join(month))?;
        let mut table = stage.start("tableinator", &[]).await?;
        let mut graph = stage.start("graphinator", &[]).await?;
        let count = stage.publish_month(&messages, month).await?;
        settled(&mut table, count).await?;
        settled(&mut graph, count).await?;
        assert_tables(&stage, &expected).await?;
        assert_graph(&expected, &Allowed::Nothing).await?;
        for (data_type, _) in by_type(&messages) {
            assert!(stage.dead_letters("tableinator", data_type).await?.is_empty());
            assert!(stage.dead_letters("graphinator", data_type).await?.is_empty());
        }
        assert_eq!(table.stop().await?.code(), Some(0));
        assert_eq!(graph.stop().await?.code(), Some(0));
        stage.clean_up().await?;
    }
    Ok(())
}
