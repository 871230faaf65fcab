//! The API's own description, OpenAPI 3.1, generated from the handlers. What every operation has in common (path
//! parameters, problems, the token) is added here once.

use std::sync::OnceLock;

use axum::http::header;
use axum::response::IntoResponse;
use utoipa::openapi::path::{Operation, ParameterBuilder, ParameterIn};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    ComponentsBuilder, ContentBuilder, InfoBuilder, ObjectBuilder, OpenApi, OpenApiBuilder, PathItem, Ref, RefOr,
    Required, ResponseBuilder, schema::Type,
};
use utoipa::{PartialSchema as _, ToSchema as _};

use super::error::{Code, Problem};

/// The finished document; the same for every router of the process.
static DOCUMENT: OnceLock<String> = OnceLock::new();

/// The document without its paths.
pub(super) fn frame() -> OpenApi {
    let bearer = |about: &str| {
        let mut scheme = Http::new(HttpAuthScheme::Bearer);
        scheme.description = Some(about.to_owned());
        SecurityScheme::Http(scheme)
    };
    let components = ComponentsBuilder::new()
        .schema(Problem::name(), Problem::schema())
        .schema(Code::name(), Code::schema())
        .security_scheme("token", bearer("an admin token, caas_..."))
        .security_scheme(
            "instance_token",
            bearer("the instance's own token, CAAS_INSTANCE_TOKEN"),
        )
        .build();
    OpenApiBuilder::new()
        .info(
            InfoBuilder::new()
                .title("caas")
                .version(env!("CARGO_PKG_VERSION"))
                .description(Some(
                    "Containers as a service. Changes answer 202 with an operation to follow; problems are RFC 9457.",
                ))
                .build(),
        )
        .components(Some(components))
        .security(Some([SecurityRequirement::new("token", Vec::<String>::new())]))
        .build()
}

/// Completes `document` and keeps it to be served.
pub(super) fn publish(mut document: OpenApi) {
    DOCUMENT.get_or_init(|| {
        for (path, item) in &mut document.paths.paths {
            complete(path, item);
        }
        document.to_json().unwrap_or_default()
    });
}

fn complete(path: &str, item: &mut PathItem) {
    let names: Vec<&str> = path
        .split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
        .collect();
    let operations = [
        &mut item.get,
        &mut item.put,
        &mut item.post,
        &mut item.delete,
        &mut item.patch,
    ];
    for operation in operations.into_iter().flatten() {
        for name in &names {
            add_path_parameter(operation, name);
        }
        let problem = ResponseBuilder::new()
            .description("a problem (RFC 9457)")
            .content(
                "application/problem+json",
                ContentBuilder::new()
                    .schema(Some(Ref::from_schema_name(Problem::name())))
                    .build(),
            )
            .build();
        operation
            .responses
            .responses
            .insert("default".to_owned(), RefOr::T(problem));
    }
}

fn add_path_parameter(operation: &mut Operation, name: &str) {
    let parameter = ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Path)
        .required(Required::True)
        .schema(Some(ObjectBuilder::new().schema_type(Type::String).build()))
        .build();
    operation.parameters.get_or_insert_default().push(RefOr::T(parameter));
}

/// This document
#[utoipa::path(get, path = "/openapi.json", tag = "health", security(()),
    responses((status = 200, description = "OpenAPI 3.1", body = Object)))]
pub(super) async fn document() -> impl IntoResponse {
    let text = DOCUMENT.get().map_or("{}", String::as_str);
    ([(header::CONTENT_TYPE, "application/json")], text)
}
