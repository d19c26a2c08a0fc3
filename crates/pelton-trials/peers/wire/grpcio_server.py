"""An echo behind grpcio's asyncio server, one process a replica. Messages are handed back as they came, without decoding them."""

import argparse
import asyncio

import grpc
import replica


async def main(port):
    turn = asyncio.Lock()

    async def call(message, context):
        if replica.SECONDS:
            async with turn:
                await asyncio.sleep(replica.SECONDS)
        return message

    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1), ("grpc.so_reuseport", 0)]
    server = grpc.aio.server(options=unlimited)
    methods = {"Call": grpc.unary_unary_rpc_method_handler(call)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("pelton.Wire", methods),))
    if not server.add_insecure_port(f"127.0.0.1:{port}"):
        raise SystemExit(f"port {port} is taken")
    await server.start()
    replica.register()
    await server.wait_for_termination()


if __name__ == "__main__":
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--port", type=int, required=True)
    asyncio.run(main(arguments.parse_args().port))
