//! Reflection: off unless configured, and then for those alone who may do something.

use epigraph_rpc::channel::channel;
use epigraph_rpc::{Reason, Refusal};
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::support::{House, SERVER, Serving, block_on};

/// The services that a process says it knows, or why it says nothing.
fn services(house: &House, serving: &Serving) -> Result<Vec<String>, Option<Reason>> {
    block_on(async {
        let channel = channel(&serving.address, &house.tls(), &SERVER.parse().unwrap()).unwrap();
        let asked = Some(MessageRequest::ListServices(String::new()));
        let request = ServerReflectionRequest { host: String::new(), message_request: asked };
        let answer = ServerReflectionClient::new(channel)
            .server_reflection_info(tokio_stream::once(request))
            .await
            .map_err(|status| Refusal::from_status(&status).map(|refusal| refusal.reason()))?;
        let answer = answer.into_inner().message().await.unwrap().unwrap();
        let Some(MessageResponse::ListServicesResponse(listed)) = answer.message_response else {
            panic!("{answer:?}");
        };
        Ok(listed.service.into_iter().map(|service| service.name).collect())
    })
}

/// Seen to fail when it was served without being configured, and when no grant was needed.
#[test]
fn reflection_is_off_unless_configured_and_then_for_those_with_a_grant() {
    let house = House::new();
    let serving = house.serve();
    assert_eq!(services(&house, &serving), Err(Some(Reason::UnknownRpc)));
    serving.stop();

    house.edit("log.toml", "[listen]\n", "[listen]\nreflection = true\n");
    let serving = house.serve();
    let listed = services(&house, &serving).unwrap();
    assert!(listed.iter().any(|name| name == "epigraph.v1.LogService"), "{listed:?}");
    serving.stop();

    house.edit("log.toml", "/epigraph/appender/quickstart\"", "/epigraph/appender/somebody-else\"");
    let serving = house.serve();
    assert_eq!(services(&house, &serving), Err(Some(Reason::PermissionDenied)));
    serving.stop();
}
