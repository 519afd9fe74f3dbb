//! What an executor is working on, and whether anybody still waits for it.
//!
//! Ballista drops the future of a task that was cancelled, but not what that future has started: a guard around each task tells the
//! function on its thread.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::array::StringArray;
use async_trait::async_trait;
use ballista_core::JobId;
use ballista_core::serde::protobuf::{RuntimeStatsReport, ShuffleWritePartition, TaskColumnStats, WindowStateReport};
use ballista_executor::execution_engine::{DefaultExecutionEngine, ExecutionEngine, QueryStageExecutor};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::datasource::source::DataSourceExec;
use datafusion::error::Result;
use datafusion::execution::TaskContext;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::metrics::MetricsSet;
use datafusion::prelude::SessionConfig;
use pipeline::stage::Cancel;

/// The orders that are worked on here. One may be so twice: where a machine was taken for lost that was not.
#[derive(Default)]
pub(super) struct Running {
    orders: Mutex<HashMap<String, Vec<Cancel>>>,
    /// Set when the executor itself is to end.
    ends: Cancel,
}

impl Running {
    /// Asks everything to stop, what comes later too.
    pub(super) fn end(&self) {
        self.ends.cancel();
        self.lock().values().flatten().for_each(Cancel::cancel);
    }

    pub(super) fn ends(&self) -> bool {
        self.ends.is_cancelled()
    }

    /// What tells the order's maker to stop.
    pub(super) fn cancel_of(&self, order: &str) -> Cancel {
        if self.ends() {
            return self.ends.clone();
        }
        self.lock().get(order).and_then(|cancels| cancels.last()).cloned().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Vec<Cancel>>> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(self: &Arc<Self>, orders: &[String]) -> Guard {
        let mut entered = Vec::new();
        for order in orders {
            let cancel = Cancel::default();
            self.lock().entry(order.clone()).or_default().push(cancel.clone());
            entered.push((order.clone(), cancel));
        }
        Guard { running: Arc::clone(self), entered }
    }
}

/// Lives as long as Ballista waits for a task.
struct Guard {
    running: Arc<Running>,
    entered: Vec<(String, Cancel)>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut running = self.running.lock();
        for (order, cancel) in &self.entered {
            cancel.cancel();
            if let Some(cancels) = running.get_mut(order) {
                cancels.retain(|cancel| !cancel.is_cancelled());
                if cancels.is_empty() {
                    running.remove(order);
                }
            }
        }
    }
}

/// Ballista's own engine, with a guard around each task.
pub(super) struct Engine {
    inner: DefaultExecutionEngine,
    running: Arc<Running>,
}

impl Engine {
    pub(super) fn new(running: Arc<Running>) -> Self {
        Self { inner: DefaultExecutionEngine::new(), running }
    }
}

impl ExecutionEngine for Engine {
    fn create_query_stage_exec(
        &self,
        job_id: JobId,
        stage_id: usize,
        task_id: usize,
        global_output_partition_ids: Vec<usize>,
        plan: Arc<dyn ExecutionPlan>,
        work_dir: &str,
        config: &SessionConfig,
    ) -> Result<Arc<dyn QueryStageExecutor>> {
        let orders = orders_of(&plan)?;
        let inner = self.inner.create_query_stage_exec(
            job_id,
            stage_id,
            task_id,
            global_output_partition_ids,
            plan,
            work_dir,
            config,
        )?;
        Ok(Arc::new(Guarded { inner, orders, running: Arc::clone(&self.running) }))
    }
}

/// The texts of the plan's rows in memory: the orders of ours. Queries over files have none.
fn orders_of(plan: &Arc<dyn ExecutionPlan>) -> Result<Vec<String>> {
    let mut orders = Vec::new();
    plan.apply(|node| {
        let source = node.downcast_ref::<DataSourceExec>().map(DataSourceExec::data_source);
        let memory = source.and_then(|source| source.downcast_ref::<MemorySourceConfig>());
        for batch in memory.iter().flat_map(|memory| memory.partitions()).flatten() {
            let texts = batch.columns().first().and_then(|column| column.as_any().downcast_ref::<StringArray>());
            orders.extend(texts.into_iter().flatten().flatten().map(str::to_owned));
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(orders)
}

struct Guarded {
    inner: Arc<dyn QueryStageExecutor>,
    orders: Vec<String>,
    running: Arc<Running>,
}

impl fmt::Debug for Guarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl fmt::Display for Guarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.inner, f)
    }
}

#[async_trait]
impl QueryStageExecutor for Guarded {
    async fn execute_query_stage(
        &self,
        task_id: usize,
        context: Arc<TaskContext>,
    ) -> Result<Vec<ShuffleWritePartition>> {
        let _guard = self.running.enter(&self.orders);
        self.inner.execute_query_stage(task_id, context).await
    }

    fn collect_plan_metrics(&self) -> Vec<MetricsSet> {
        self.inner.collect_plan_metrics()
    }

    fn collect_runtime_stats_reports(&self) -> Vec<RuntimeStatsReport> {
        self.inner.collect_runtime_stats_reports()
    }

    fn collect_window_state_reports(&self) -> Result<Vec<WindowStateReport>> {
        self.inner.collect_window_state_reports()
    }

    fn collect_column_stats(&self) -> Vec<TaskColumnStats> {
        self.inner.collect_column_stats()
    }
}
