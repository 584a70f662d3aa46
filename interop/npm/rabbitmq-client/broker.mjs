// The broker's URL for rabbitmq-client, which takes no user for granted.
export function broker(url) {
    const broker = new URL(url);
    broker.username ||= 'guest';
    broker.password ||= 'guest';
    return broker.href;
}
