//! A run's side of a cluster: tables of partitions become jobs.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use ballista_core::extension::{SessionConfigExt, SessionConfigHelperExt, SessionStateExt};
use ballista_core::serde::BallistaPhysicalExtensionCodec;
use ballista_core::serde::protobuf::execute_query_params::Query;
use ballista_core::serde::protobuf::job_status::Status;
use ballista_core::serde::protobuf::scheduler_grpc_client::SchedulerGrpcClient;
use ballista_core::serde::protobuf::{CancelJobParams, ExecuteQueryParams, GetJobStatusParams, execute_query_result};
use ballista_core::utils::{GrpcClientConfig, create_grpc_client_endpoint};
use ballista_core::version::insert_version_header;
use datafusion::common::ScalarValue;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::error::DataFusionError;
use datafusion::execution::SessionStateBuilder;
use datafusion::physical_expr::async_scalar_function::AsyncFuncExpr;
use datafusion::physical_expr::expressions::{Column, Literal};
use datafusion::physical_expr::{PhysicalExpr, ScalarFunctionExpr};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::async_func::AsyncFuncExec;
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion_proto::physical_plan::AsExecutionPlan;
use datafusion_proto::protobuf::PhysicalPlanNode;
use pipeline::run::{self, NotMade, Order};
use pipeline::stage::{Cancel, Queries};
use tokio::runtime::Runtime;
use tonic::Request;
use tonic::transport::Channel;

use super::function::{self, Failure};
use super::{Address, ClusterError, MESSAGE, Manifest, Table};

/// Between two questions about a job: first, and at most.
const ASK: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(500)];
/// Parts into which a query's rows are dealt by their keys.
const SHUFFLED: usize = 16;
/// A scheduler may be away for so long, as when it is started anew.
const AWAY: Duration = Duration::from_mins(2);
/// One that listens but does not answer is no scheduler.
const ANSWER: Duration = Duration::from_secs(5);

/// A cluster that makes a run's partitions.
pub struct Cluster {
    address: Address,
    runtime: Runtime,
    scheduler: SchedulerGrpcClient<Channel>,
    at_a_time: usize,
    manifest: Manifest,
}

impl Cluster {
    /// Finds the scheduler. It is given up to `at_a_time` partitions at once.
    pub fn connect(address: Address, manifest: Manifest, at_a_time: usize) -> Result<Self, ClusterError> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.map_err(ClusterError::io("start", "a runtime"))?;
        let unreachable = |error: &dyn std::fmt::Display| {
            let detail = error.to_string();
            ClusterError::Unreachable { address: address.clone(), detail }
        };
        let endpoint = create_grpc_client_endpoint(address.url(), Some(&GrpcClientConfig::default()));
        let endpoint = endpoint.map_err(|error| unreachable(&error))?;
        let channel = runtime.block_on(async { endpoint.connect().await }).map_err(|error| {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            unreachable(&source.unwrap_or_else(|| error.to_string()))
        })?;
        let scheduler = SchedulerGrpcClient::new(channel)
            .max_encoding_message_size(MESSAGE as usize)
            .max_decoding_message_size(MESSAGE as usize);
        Ok(Self { address, runtime, scheduler, at_a_time: at_a_time.max(1), manifest })
    }

    /// Whether any executor is there.
    pub fn has_executors(&self) -> Result<bool, ClusterError> {
        let Address { host, port } = &self.address;
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect((host.as_str(), *port))?;
            stream.set_read_timeout(Some(ANSWER))?;
            write!(stream, "GET /readyz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
            let mut answer = Vec::new();
            stream.take(4096).read_to_end(&mut answer)?;
            Ok(String::from_utf8_lossy(&answer).into_owned())
        };
        let answer = ask()
            .map_err(|error| ClusterError::Unreachable { address: self.address.clone(), detail: error.to_string() })?;
        match answer.split(' ').nth(1) {
            Some("200") => Ok(true),
            Some("503") => Ok(false),
            _ => Err(ClusterError::Refused {
                address: self.address.clone(),
                detail: "it does not answer as a Ballista scheduler".to_owned(),
            }),
        }
    }

    async fn run(&self, runner: &str, orders: &[Order], enough: &Cancel) -> Result<(), NotMade> {
        let cluster = |error: ClusterError| NotMade::Cluster(error.into());
        let plan = self.plan(runner, orders).map_err(|error| cluster(error.into()))?;
        let mut scheduler = self.scheduler.clone();
        let mut job = None;
        let mut heard = Instant::now();
        let mut pause = ASK[0];
        loop {
            let asked = match &job {
                None => self.submit(&mut scheduler, &plan).await.map(|id| {
                    job = Some(id);
                    None
                }),
                Some(id) => status(&mut scheduler, id).await.inspect(|status| {
                    // Started anew, it knows nothing of jobs.
                    if status.is_none() {
                        job = None;
                    }
                }),
            };
            match asked {
                Ok(status) => {
                    heard = Instant::now();
                    match status {
                        Some(Status::Successful(_)) => return Ok(()),
                        Some(Status::Failed(_)) if enough.is_cancelled() => return Err(NotMade::Interrupted),
                        Some(Status::Failed(failed)) => return Err(why(orders, &failed.error)),
                        Some(Status::Queued(_) | Status::Running(_)) | None => {}
                    }
                }
                Err(refused) if refused.code() == tonic::Code::InvalidArgument => {
                    let (address, detail) = (self.address.clone(), refused.message().to_owned());
                    return Err(cluster(ClusterError::Refused { address, detail }));
                }
                Err(away) if heard.elapsed() > AWAY => {
                    let (address, detail) = (self.address.clone(), away.message().to_owned());
                    return Err(cluster(ClusterError::Unreachable { address, detail }));
                }
                Err(_) => {}
            }
            if enough.is_cancelled() {
                if let Some(job_id) = job {
                    // What it is at work on hears of it; whether the scheduler does matters to nobody.
                    let _ = scheduler.cancel_job(CancelJobParams { job_id }).await;
                }
                return Err(NotMade::Interrupted);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(ASK[1]);
        }
    }

    /// A row for each order, on which the function is called.
    fn plan(&self, runner: &str, orders: &[Order]) -> Result<Vec<u8>, DataFusionError> {
        let json = |error: serde_json::Error| DataFusionError::External(error.into());
        let common = Table { manifest: self.manifest.clone(), runner: runner.to_owned() };
        let common = serde_json::to_string(&common).map_err(json)?;
        let schema = Arc::new(Schema::new(vec![Field::new("order", DataType::Utf8, false)]));
        let mut rows = Vec::with_capacity(orders.len());
        for order in orders {
            let order = StringArray::from(vec![serde_json::to_string(order).map_err(json)?]);
            rows.push(vec![RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(order)])?]);
        }
        let table = MemorySourceConfig::try_new_exec(&rows, Arc::clone(&schema), None)?;
        let arguments: Vec<Arc<dyn PhysicalExpr>> =
            vec![Arc::new(Literal::new(ScalarValue::Utf8(Some(common)))), Arc::new(Column::new("order", 0))];
        let config = Arc::clone(config().options());
        let call = ScalarFunctionExpr::try_new(Arc::new(function::named()), arguments, &schema, config)?;
        let call = AsyncFuncExpr::try_new("ended", Arc::new(call), &schema)?;
        let plan: Arc<dyn ExecutionPlan> = Arc::new(AsyncFuncExec::try_new(vec![Arc::new(call)], table)?);
        let node = PhysicalPlanNode::try_from_physical_plan(plan, &BallistaPhysicalExtensionCodec::default())?;
        let mut bytes = Vec::new();
        node.try_encode(&mut bytes)?;
        Ok(bytes)
    }

    /// Submits a physical plan; returns the job's name. It is not optimised: a row stays a partition, and a partition a task.
    async fn submit(&self, scheduler: &mut SchedulerGrpcClient<Channel>, plan: &[u8]) -> Result<String, tonic::Status> {
        let mut request = Request::new(ExecuteQueryParams {
            session_id: format!("ferrotype-{}", shards::disk::unique()),
            settings: config().to_key_value_pairs(),
            operation_id: String::new(),
            query: Some(Query::PhysicalPlan(plan.to_vec())),
        });
        insert_version_header(request.metadata_mut());
        match scheduler.execute_query(request).await?.into_inner().result {
            Some(execute_query_result::Result::Success(job)) => Ok(job.job_id),
            other => Err(tonic::Status::invalid_argument(format!("it answered {other:?}"))),
        }
    }
}

impl run::Executor for Cluster {
    fn at_a_time(&self) -> usize {
        self.at_a_time
    }

    fn queries(&self) -> Option<Arc<dyn Queries>> {
        Some(Arc::new(Remote { url: self.address.url() }))
    }

    fn make(&self, runner: &str, orders: &[Order], enough: &Cancel) -> Result<(), NotMade> {
        self.runtime.block_on(self.run(runner, orders, enough))
    }
}

/// Queries that the executors answer.
struct Remote {
    url: String,
}

impl Queries for Remote {
    fn context(&self) -> Result<SessionContext, DataFusionError> {
        let state = SessionStateBuilder::new().with_default_features().with_config(config()).build();
        Ok(SessionContext::new_with_state(state.upgrade_for_ballista(self.url.clone())?))
    }
}

/// What goes with every job.
fn config() -> SessionConfig {
    SessionConfig::new_with_ballista()
        // Without it, a task has as many rows as its executor has free cores.
        .set_usize("ballista.scheduler.max_partitions_per_task", 1)
        // The static planner is the one that is tested with executors that are lost.
        .set_bool("ballista.planner.adaptive.enabled", false)
        // Of queries: as many tasks read what is shuffled; a file is read by one, in its order.
        .with_target_partitions(SHUFFLED)
        .set_bool("datafusion.optimizer.repartition_file_scans", false)
        .with_ballista_grpc_client_max_message_size(MESSAGE as usize)
}

/// Why a job of these orders failed, by what Ballista says of it.
fn why(orders: &[Order], text: &str) -> NotMade {
    let detail = match Failure::find_in(text) {
        Some(Failure { partition: Some(partition), error }) => return NotMade::Partition { partition, error },
        Some(Failure { partition: None, error }) => error,
        None => text.to_owned(),
    };
    let stage = orders.first().map(|order| order.stage.clone()).unwrap_or_default();
    NotMade::Cluster(ClusterError::Failed { stage, partitions: orders.len(), detail }.into())
}

async fn status(scheduler: &mut SchedulerGrpcClient<Channel>, job: &str) -> Result<Option<Status>, tonic::Status> {
    let asked = GetJobStatusParams { job_id: job.to_owned() };
    Ok(scheduler.get_job_status(asked).await?.into_inner().status.and_then(|status| status.status))
}
