//! Ballista's scheduler, with our function known to it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ballista_core::config::TaskSchedulingPolicy;
use ballista_core::utils::default_session_builder;
use ballista_scheduler::cluster::BallistaCluster;
use ballista_scheduler::config::{SchedulerConfig, TaskDistributionPolicy};
use ballista_scheduler::scheduler_process::{create_scheduler, start_grpc_service_with_listener};
use datafusion::execution::FunctionRegistry;
use datafusion::prelude::SessionConfig;
use datafusion_proto::protobuf::{LogicalPlanNode, PhysicalPlanNode};
use tokio::net::TcpListener;

use super::{ClusterError, MESSAGE, function};

/// Jobs that have ended are forgotten after so many seconds, with what they left on executors.
const REMEMBERED: u64 = 300;

/// When executors count as lost. Whole seconds: Ballista keeps no finer time.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// After so long without a heartbeat, an executor's partitions are made elsewhere.
    pub lost_after: Duration,
    /// After so long the partitions of an executor that leaves are made elsewhere. It gives them up at once, but what it says of that
    /// may not arrive any more.
    pub leaving: Duration,
    /// So long after the last executor was lost, what runs is given up.
    pub nobody: Duration,
}

/// A scheduler that is about to serve. It keeps all it knows in memory: runs that wait for it ask again.
pub struct Scheduler {
    listener: TcpListener,
    config: SchedulerConfig,
}

impl Scheduler {
    /// Listens at `bind`. `public` is the name under which executors and runs reach this machine.
    pub async fn bind(bind: SocketAddr, public: &str, patience: Patience) -> Result<Self, ClusterError> {
        let listener = TcpListener::bind(bind).await.map_err(ClusterError::io("listen at", bind))?;
        let address = listener.local_addr().map_err(ClusterError::io("listen at", bind))?;
        // Plans name the function, so whoever reads one has to know it.
        let session_builder = Arc::new(move |config: SessionConfig| {
            let mut state = default_session_builder(config)?;
            state.register_udf(Arc::new(function::named()))?;
            Ok(state)
        });
        let seconds = |duration: Duration| duration.as_secs().max(1);
        let config = SchedulerConfig {
            external_host: public.to_owned(),
            bind_host: address.ip().to_string(),
            bind_port: address.port(),
            // Only so executors hear of what is cancelled.
            scheduling_policy: TaskSchedulingPolicy::PushStaged,
            // The other way fills one executor before the next.
            task_distribution: TaskDistributionPolicy::RoundRobin,
            executor_timeout_seconds: seconds(patience.lost_after),
            expire_dead_executor_interval_seconds: 1,
            executor_termination_grace_period: seconds(patience.leaving),
            no_executors_grace_period_seconds: seconds(patience.nobody),
            grpc_server_max_decoding_message_size: MESSAGE,
            grpc_server_max_encoding_message_size: MESSAGE,
            grpc_client_max_message_size: MESSAGE,
            finished_job_data_clean_up_interval_seconds: REMEMBERED,
            finished_job_state_clean_up_interval_seconds: REMEMBERED,
            override_session_builder: Some(session_builder),
            ..SchedulerConfig::default()
        };
        config.validate()?;
        Ok(Self { listener, config })
    }

    /// Where it listens.
    pub fn address(&self) -> String {
        format!("{}:{}", self.config.external_host, self.config.bind_port)
    }

    /// Serves until the listener fails. What it starts ends with the runtime that runs it.
    pub async fn serve(self) -> Result<(), ClusterError> {
        let config = Arc::new(self.config);
        let cluster = BallistaCluster::new_from_config(&config).await?;
        let scheduler = create_scheduler::<LogicalPlanNode, PhysicalPlanNode>(cluster, config).await?;
        Ok(start_grpc_service_with_listener(self.listener, scheduler).await?)
    }
}
