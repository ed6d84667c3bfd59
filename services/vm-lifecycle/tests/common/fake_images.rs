//! An image-service that holds what the test put, and pulls as the test says.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use bus::{Bus, Service};
use contract::{
    ApiError, HostId, ImageId, ImageName, KernelId, OperationId,
    image::{Get, Image, ImageConfig, Pull, PullRequest},
    kernel::{self, Choice, Kernel, PlaceRequest},
    operation::Operation,
};
use operations::NewOperation;
use serde_json::json;
use store::Store;
use time::OffsetDateTime;

pub struct FakeImages {
    images: Arc<Mutex<BTreeMap<String, Image>>>,
    pulls: Arc<Mutex<Vec<(PullRequest, OperationId)>>>,
    kernels: Arc<Mutex<BTreeMap<String, Kernel>>>,
    _service: Service,
}

impl FakeImages {
    pub async fn start(bus: &Bus, store: Store) -> Self {
        let images: Arc<Mutex<BTreeMap<String, Image>>> = Arc::default();
        let pulls: Arc<Mutex<Vec<(PullRequest, OperationId)>>> = Arc::default();
        let service = bus.service("image-service", "0.1.0", "a fake").await.unwrap();
        let held = images.clone();
        service
            .serve::<Get, _>(move |_, request| {
                let held = held.clone();
                async move {
                    let held = held.lock().unwrap();
                    let found =
                        held.values().find(|i| i.name.as_str() == request.image || i.id.to_string() == request.image);
                    found.cloned().ok_or_else(|| ApiError::not_found(format!("no image {}", request.image)))
                }
            })
            .await
            .unwrap();
        let kernels: Arc<Mutex<BTreeMap<String, Kernel>>> = Arc::default();
        serve_kernels(&service, &kernels, &store).await;
        let asked = pulls.clone();
        service
            .serve::<Pull, _>(move |context, request| {
                let (asked, store) = (asked.clone(), store.clone());
                async move { pull(&store, &asked, context, request).await }
            })
            .await
            .unwrap();
        service.ready().await.unwrap();
        Self { images, pulls, kernels, _service: service }
    }

    /// Publishes an image of that name on these hosts (more of them, if it exists).
    pub async fn put(&self, sql: &tokio_postgres::Client, name: &str, hosts: &[&str]) -> ImageId {
        self.put_from(sql, name, name, hosts).await
    }

    pub async fn put_from(&self, sql: &tokio_postgres::Client, name: &str, source: &str, hosts: &[&str]) -> ImageId {
        let known = self.images.lock().unwrap().get(name).map(|image| image.id);
        let id = known.unwrap_or_else(ImageId::new);
        if known.is_none() {
            insert_image(sql, id, name).await;
        }
        for host in hosts {
            let insert = "insert into image.replica (image_id, host_id) values ($1, $2) on conflict do nothing";
            sql.execute(insert, &[&id.0, host]).await.unwrap();
        }
        let mut images = self.images.lock().unwrap();
        let image = images.entry(name.to_owned()).or_insert_with(|| Image {
            id,
            name: name.parse::<ImageName>().unwrap(),
            names: vec![name.parse::<ImageName>().unwrap()],
            digest: "sha256:0".into(),
            source: source.into(),
            architecture: "amd64".into(),
            rootfs_bytes: 1 << 20,
            config: ImageConfig::default(),
            kernel: None,
            hosts: vec![],
            missing: vec![],
            unnamed_at: None,
            created_at: OffsetDateTime::now_utc(),
        });
        image.hosts.extend(hosts.iter().map(|host| host.parse::<HostId>().unwrap()));
        id
    }

    /// A kernel of the lab's, on these hosts.
    pub async fn put_kernel(&self, sql: &tokio_postgres::Client, name: &str, hosts: &[&str], default: bool) -> Kernel {
        let id = KernelId::new();
        let insert = "insert into image.kernel (id, digest, release, architecture, bytes, source) \
                      values ($1, $2, $3, 'amd64', 7, 'test')";
        let (digest, release) = (format!("sha256:{}", id.0.simple()), format!("6.1-{name}"));
        sql.execute(insert, &[&id.0, &digest, &release]).await.unwrap();
        let kernel = Kernel {
            id,
            name: name.parse().unwrap(),
            names: vec![name.parse().unwrap()],
            digest,
            release,
            architecture: "amd64".into(),
            bytes: 7,
            source: "test".into(),
            default,
            hosts: hosts.iter().map(|host| host.parse().unwrap()).collect(),
            missing: vec![],
            vms: 0,
            images: 0,
            created_at: OffsetDateTime::now_utc(),
        };
        self.kernels.lock().unwrap().insert(name.to_owned(), kernel.clone());
        kernel
    }

    /// The hosts that have a kernel by now.
    pub fn kernel_hosts(&self, name: &str) -> Vec<String> {
        self.kernels.lock().unwrap()[name].hosts.iter().map(ToString::to_string).collect()
    }

    /// The image of that name.
    pub fn image(&self, name: &str) -> Image {
        self.images.lock().unwrap()[name].clone()
    }

    /// The pulls asked for, once each.
    pub fn pulls(&self) -> Vec<(PullRequest, OperationId)> {
        self.pulls.lock().unwrap().clone()
    }
}

async fn serve_kernels(service: &Service, kernels: &Arc<Mutex<BTreeMap<String, Kernel>>>, store: &Store) {
    let all = kernels.clone();
    let choose = service.serve::<kernel::Choose, _>(move |_, request| {
        let all = all.clone();
        async move {
            let all = all.lock().unwrap();
            let kernel = match request.kernel {
                Some(name) => all.get(name.as_str()).cloned(),
                None => all.values().find(|kernel| kernel.default).cloned(),
            };
            Ok(Choice { kernel })
        }
    });
    choose.await.unwrap();
    let all = kernels.clone();
    let get = service.serve::<kernel::Get, _>(move |_, request| {
        let kernel = all.lock().unwrap().get(&request.kernel).cloned();
        async move { kernel.ok_or_else(|| ApiError::not_found("no such kernel")) }
    });
    get.await.unwrap();
    let (all, store) = (kernels.clone(), store.clone());
    let place = service.serve::<kernel::Place, _>(move |context, request| {
        let (all, store) = (all.clone(), store.clone());
        async move { place(&store, &all, context, request).await }
    });
    place.await.unwrap();
}

/// Places a kernel at once.
async fn place(
    store: &Store,
    kernels: &Mutex<BTreeMap<String, Kernel>>,
    context: bus::RequestContext,
    request: PlaceRequest,
) -> Result<Operation, ApiError> {
    let new = NewOperation {
        id: OperationId::new(),
        kind: "kernel.place",
        resource: format!("kernel:{}@{}", request.kernel, request.host),
        request: json!(request),
        deadline: contract::deadline::PULL,
        request_key: context.request_key,
        request_digest: context.body_digest,
        traceparent: None,
    };
    let client = store.client().await?;
    let submitted = operations::submit(&client, &new).await?;
    for kernel in kernels.lock().unwrap().values_mut().filter(|kernel| kernel.id == request.kernel) {
        if !kernel.hosts.contains(&request.host) {
            kernel.hosts.push(request.host.clone());
        }
    }
    let end = "update operations.operation set state = 'succeeded', finished_at = now() where id = $1";
    client.execute(end, &[&submitted.id().0]).await.unwrap();
    drop(client);
    operations::get(store, submitted.id()).await
}

async fn insert_image(sql: &tokio_postgres::Client, id: ImageId, name: &str) {
    let image = "insert into image.image (id, digest, source, architecture, rootfs_bytes, config) \
                 values ($1, 'sha256:' || $1::uuid, $2, 'amd64', 1048576, '{}')";
    sql.execute(image, &[&id.0, &name]).await.unwrap();
    sql.execute("insert into image.name (name, image_id) values ($2, $1)", &[&id.0, &name]).await.unwrap();
}

/// Accepts a pull as an operation that nobody works on: the test ends it.
async fn pull(
    store: &Store,
    asked: &Mutex<Vec<(PullRequest, OperationId)>>,
    context: bus::RequestContext,
    request: PullRequest,
) -> Result<Operation, ApiError> {
    let new = NewOperation {
        id: OperationId::new(),
        kind: "image.pull",
        resource: format!("image:{}", request.name),
        request: json!(request),
        deadline: contract::deadline::PULL,
        request_key: context.request_key,
        request_digest: context.body_digest,
        traceparent: None,
    };
    let client = store.client().await?;
    let submitted = operations::submit(&client, &new).await?;
    drop(client);
    if let operations::Submitted::New(id) = submitted {
        asked.lock().unwrap().push((request, id));
    }
    operations::get(store, submitted.id()).await
}

/// Ends a pull as the test wants: with this image, or this error.
pub async fn end_pull(sql: &tokio_postgres::Client, id: OperationId, end: Result<Image, ApiError>) {
    let (state, result, error) = match end {
        Ok(image) => ("succeeded", Some(json!(image)), None),
        Err(error) => ("failed", None, Some(json!(error))),
    };
    let end = "update operations.operation set state = $2, result = $3, error = $4, finished_at = now() where id = $1";
    assert_eq!(sql.execute(end, &[&id.0, &state, &result, &error]).await.unwrap(), 1);
}
